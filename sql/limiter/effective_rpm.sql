-- What it does: says how many calls a minute a model is given: its rpm, or less for a while after a 429.
-- Returns: the learned ceiling, which rises by 5 % of rpm a minute, never above rpm and never below 1; rpm without one.
-- Locks: none.
-- Why: others may share the key, and only the provider knows how much they use. Rising by the clock needs no writes.
create or replace function llmqueue_internal.effective_rpm(p_model text, p_rpm integer, p_now timestamptz)
returns integer language plpgsql stable security definer set search_path = pg_catalog, pg_temp as $$
declare
    v_state record;
begin
    select s.rpm_ceiling, s.rpm_cut_at into v_state from llmqueue.model_state s where s.model = p_model;
    if v_state.rpm_ceiling is null then
        return p_rpm;
    end if;
    return least(p_rpm, greatest(1, floor(
        v_state.rpm_ceiling
        + 0.05 * p_rpm * greatest(0, extract(epoch from p_now - v_state.rpm_cut_at)) / 60)))::integer;
end
$$;
