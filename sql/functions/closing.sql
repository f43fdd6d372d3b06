-- What it does: says whether a model is closed after refusals, and whether the next call is a probe.
-- Returns: one row: is_closed, retry_in_s (null: a probe is under way), and probes: 1 if only a probe may go out, else null.
-- Locks: none; the caller holds the model's advisory lock.
-- Why: when the pause is over one call tries, not all that wait. A probe that has not been refused for 5 s is being answered;
--   the next need not wait for its answer, which may take minutes.
create or replace function llmqueue.closing(
    p_model text, p_now timestamptz, out is_closed boolean, out retry_in_s double precision, out probes integer)
language plpgsql stable as $$
declare
    v_state record;
    v_probe_at timestamptz;
begin
    is_closed := false;
    select s.closed_until, s.probe_fence into v_state from llmqueue.model_state s where s.model = p_model and s.closed_until is not null;
    if not found then
        return;
    end if;
    if p_now < v_state.closed_until then
        is_closed := true;
        retry_in_s := extract(epoch from v_state.closed_until - p_now)::double precision;
        return;
    end if;
    select a.granted_at into v_probe_at from llmqueue.attempt a where a.fence = v_state.probe_fence and a.ended_at is null;
    if v_probe_at > p_now - interval '5 seconds' then
        is_closed := true;
        retry_in_s := extract(epoch from v_probe_at + interval '5 seconds' - p_now)::double precision;
        return;
    end if;
    probes := 1;
end
$$;
