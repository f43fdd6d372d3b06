-- What it does: says how many calls of a model may be in flight: its max_concurrency, or less for a while after a 529.
-- Returns: the learned ceiling, which rises by a twentieth (at least 1) a second for ten minutes; null: no limit.
-- Locks: none.
-- Why: an overloaded model needs fewer calls at a time, not fewer per minute.
create or replace function llmqueue_internal.effective_concurrency(
    p_model text, p_max_concurrency integer, p_now timestamptz)
returns integer language plpgsql stable security definer set search_path = pg_catalog, pg_temp as $$
declare
    v_state record;
    v_since_s double precision;
begin
    select s.concurrency_ceiling, s.concurrency_cut_at into v_state from llmqueue.model_state s where s.model = p_model;
    v_since_s := greatest(0, extract(epoch from p_now - v_state.concurrency_cut_at))::double precision;
    if v_state.concurrency_ceiling is null or v_since_s > 600 then
        return p_max_concurrency;
    end if;
    return least(p_max_concurrency,
        floor(v_state.concurrency_ceiling + v_since_s * greatest(1, 0.05 * v_state.concurrency_ceiling)))::integer;
end
$$;
