-- What it does: claim() for the worker's role: with the owner's rights, by the database's clock.
-- Returns: what claim() returns.
-- Locks: those of claim().
-- Why: the clock and the ledger are out of a worker's reach: its role may execute worker_* and nothing else (I7).
--   With the search path of the owner's own sessions, where the triggers of the tasks table find what they name.
--   work_mem as in claim(): prompts, up to 64 MB, are not to pass through temporary files.
create or replace function llmqueue.worker_claim(
    p_worker uuid, p_models text[], p_slots integer, p_chores text[] default '{}', p_running integer default 0,
    p_hot_slots integer default 0, p_turns jsonb default null)
returns setof llmqueue.claimed language plpgsql volatile
security definer set search_path = pg_catalog, pg_temp set work_mem = '64MB' as $$
begin
    perform set_config('search_path', llmqueue.owners_path(), true);   -- until this function ends
    return query select * from llmqueue.claim(p_worker, p_models, p_slots, p_chores, p_running, p_hot_slots, p_turns);
end
$$;
