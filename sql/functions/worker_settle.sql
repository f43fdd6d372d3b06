-- What it does: settle() for the worker's role: with the owner's rights, by the database's clock.
-- Returns: what settle() returns.
-- Locks: those of settle().
-- Why: the clock and the ledger are out of a worker's reach: its role may execute worker_* and nothing else (I7).
--   With the search path of the owner's own sessions, where the triggers of the tasks table find what they name.
create or replace function llmqueue.worker_settle(p_worker uuid, p_items jsonb)
returns table (fence bigint, outcome text) language plpgsql volatile
security definer set search_path = pg_catalog, pg_temp as $$
begin
    perform set_config('search_path', llmqueue.owners_path(), true);   -- until this function ends
    return query select * from llmqueue.settle(p_worker, p_items);
end
$$;
