-- What it does: top_up() for the worker's role: with the owner's rights, by the database's clock.
-- Returns: what top_up() returns.
-- Locks: those of top_up().
-- Why: the clock and the ledger are out of a worker's reach: its role may execute worker_* and nothing else (I7).
create or replace function llmqueue.worker_top_up(p_worker uuid, p_fence bigint, p_input integer)
returns boolean language plpgsql volatile
security definer set search_path = pg_catalog, pg_temp as $$
begin
    return llmqueue.top_up(p_worker, p_fence, p_input);
end
$$;
