-- What it does: says whether a model is in cooldown, and whether the next call is a probe.
-- Returns: one row: is_in_cooldown; retry_in_s, null when only a notification or the next poll can tell; probes: 1 if
--   only a probe may be granted, else null.
-- Locks: the model's row of model_state, if the model is to be probed; it never waits for the row, so there is no
--   deadlock with a settle that holds it. The caller holds the model's advisory lock.
-- Why: after the pause one call tries, not all that wait. A probe that was not refused within 5 s is being answered:
--   the cooldown ends without its answer, which may take minutes.
create or replace function llmqueue_internal.check_cooldown(
    p_model text, p_now timestamptz, out is_in_cooldown boolean, out retry_in_s double precision, out probes integer)
language plpgsql volatile as $$
declare
    v_state record;
    v_probe_at timestamptz;
begin
    is_in_cooldown := false;
    select s.cooldown_until, s.probe_fence into v_state
      from llmqueue.model_state s where s.model = p_model and s.cooldown_until is not null;
    if not found then
        return;
    end if;
    is_in_cooldown := true;
    retry_in_s := extract(epoch from v_state.cooldown_until - p_now)::double precision;
    if retry_in_s > 0 then
        return;
    end if;
    select s.cooldown_until, s.probe_fence into v_state
      from llmqueue.model_state s
     where s.model = p_model and s.cooldown_until <= p_now for update skip locked;
    if not found then
        retry_in_s := 0.05;   -- a settle is writing the row
        return;
    end if;
    select a.granted_at into v_probe_at
      from llmqueue.attempt a where a.fence = v_state.probe_fence and a.ended_at is null;
    retry_in_s := extract(epoch from v_probe_at + interval '5 seconds' - p_now)::double precision;
    if retry_in_s > 0 then
        return;
    end if;
    is_in_cooldown := false;
    if v_probe_at is null then
        probes := 1;
    else
        perform llmqueue.end_cooldown(p_model);
    end if;
end
$$;
