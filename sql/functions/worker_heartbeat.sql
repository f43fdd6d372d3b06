-- What it does: heartbeat() for the worker's role: with the owner's rights, by the database's clock.
-- Returns: what heartbeat() returns.
-- Locks: those of heartbeat().
-- Why: the clock and the ledger are out of a worker's reach: its role may execute worker_* and nothing else (I7).
create or replace function llmqueue.worker_heartbeat(p_worker uuid, p_running integer)
returns boolean language plpgsql volatile
security definer set search_path = pg_catalog, pg_temp as $$
begin
    return llmqueue.heartbeat(p_worker, p_running);
end
$$;
