-- What it does: prune_attempts() for the worker's role: with the owner's rights, by the database's clock.
-- Returns: what prune_attempts() returns.
-- Locks: those of prune_attempts().
-- Why: the clock and the ledger are out of a worker's reach: its role may execute worker_* and nothing else (I7).
create or replace function llmqueue.worker_prune_attempts(p_keep interval, p_limit integer)
returns integer language plpgsql volatile
security definer set search_path = pg_catalog, pg_temp as $$
begin
    return llmqueue.prune_attempts(p_keep, p_limit);
end
$$;
