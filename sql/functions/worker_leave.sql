-- What it does: leave() for the worker's role: with the owner's rights, by the database's clock.
-- Returns: what leave() returns.
-- Locks: those of leave().
-- Why: the clock and the ledger are out of a worker's reach: its role may execute worker_* and nothing else (I7).
create or replace function llmqueue.worker_leave(p_worker uuid)
returns void language plpgsql volatile
security definer set search_path = pg_catalog, pg_temp as $$
begin
    perform llmqueue.leave(p_worker);
end
$$;
