-- What it does: closes a model for all workers after a refusal, and lowers what it is given.
-- Returns: until when it is closed; p_now if it is not.
-- Locks: the model's row of model_state.
-- Why: the later deadline wins: a shorter one must not cut a longer one off. Calls that were under way when it closed are
--   refused too, and say nothing new: they may move the deadline, but neither double the pause nor lower the ceiling again.
--   After 'quota' (429) others may share the key, so the calls per minute are lowered; after 'capacity' (503, 529) those at a
--   time. A ceiling is never cut to less than half. After 'failures' (5xx, resets) nothing is lowered: they say that the model
--   is broken, not that it was asked too often.
create or replace function llmqueue_internal.start_cooldown(
    p_model text, p_refusal text, p_pause_s double precision, p_because text, p_granted_at timestamptz, p_now timestamptz)
returns timestamptz language plpgsql volatile as $$
declare
    v_state llmqueue.model_state;
    v_is_news boolean;
    v_pause_s double precision;
    v_until timestamptz;
begin
    insert into llmqueue.model_state (model) values (p_model) on conflict do nothing;
    select s.* into strict v_state from llmqueue.model_state s where s.model = p_model for update;
    v_is_news := coalesce(p_granted_at > coalesce(v_state.cooldown_started_at, v_state.cooldown_ended_at), true);
    if not v_is_news and p_pause_s is null then
        return coalesce(v_state.cooldown_until, p_now);
    end if;
    -- without Retry-After 2, 4, 8 … 300 s, a quarter more or less; with it, what it says, but no storm of "0 seconds"
    v_pause_s := case when p_pause_s is null then least(300, 2 * 2.0 ^ least(v_state.cooldowns, 10)) * (0.75 + random() / 2)
                      else greatest(least(p_pause_s, 31536000), 0.25 * 2.0 ^ least(v_state.cooldowns, 8)) end;
    v_until := greatest(v_state.cooldown_until, p_now + make_interval(secs => v_pause_s));
    update llmqueue.model_state s
       set cooldown_started_at = case when v_is_news then p_now else coalesce(v_state.cooldown_started_at, p_now) end,
           cooldown_until = v_until,
           cooldown_reason = left(p_because, 500),
           cooldowns = v_state.cooldowns + v_is_news::integer,
           probe_fence = null
     where s.model = p_model;
    if p_refusal = 'quota' and coalesce(p_granted_at > v_state.rpm_cut_at, true) then
        perform llmqueue_internal.cut_rpm(p_model, p_now);
    elsif p_refusal = 'capacity' and coalesce(p_granted_at > v_state.concurrency_cut_at, true) then
        perform llmqueue_internal.cut_concurrency(p_model, p_now);
    end if;
    return v_until;
end
$$;
