-- What it does: register() for the worker's role: with the owner's rights, by the database's clock.
-- Returns: what register() returns.
-- Locks: those of register().
-- Why: the clock and the ledger are out of a worker's reach: its role may execute worker_* and nothing else (I7).
create or replace function llmqueue.worker_register(
    p_worker uuid, p_name text, p_version text, p_models text[], p_lease_s double precision, p_guard_s double precision)
returns double precision language plpgsql volatile
security definer set search_path = pg_catalog, pg_temp as $$
begin
    return llmqueue.register(p_worker, p_name, p_version, p_models, p_lease_s, p_guard_s);
end
$$;
