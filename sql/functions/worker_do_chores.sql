-- What it does: do_chores() for the worker's role: with the owner's rights, by the database's clock.
-- Returns: what do_chores() returns.
-- Locks: those of do_chores().
-- Why: the clock and the ledger are out of a worker's reach: its role may execute worker_* and nothing else (I7).
--   With the search path of the owner's own sessions, where the triggers of the tasks table find what they name.
create or replace function llmqueue.worker_do_chores(p_worker uuid, p_chores text[], p_running integer)
returns void language plpgsql volatile
security definer set search_path = pg_catalog, pg_temp as $$
begin
    perform set_config('search_path', llmqueue.owners_path(), true);   -- until this function ends
    perform llmqueue.do_chores(p_worker, p_chores, p_running);
end
$$;
