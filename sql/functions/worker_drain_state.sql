-- What it does: drain_state() for the worker's role: with the owner's rights, by the database's clock.
-- Returns: what drain_state() returns.
-- Locks: those of drain_state().
-- Why: the clock and the ledger are out of a worker's reach: its role may execute worker_* and nothing else (I7).
create or replace function llmqueue.worker_drain_state(p_models text[], p_wait_s double precision)
returns table (is_done boolean, lane text, reason text, tasks bigint, examples text[]) language plpgsql stable
security definer set search_path = pg_catalog, pg_temp as $$
begin
    return query select * from llmqueue.drain_state(p_models, p_wait_s);
end
$$;
