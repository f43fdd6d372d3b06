-- What it does: starts or prolongs the cooldown of a model, for all workers, and lowers its learned ceiling.
-- Returns: the end of the cooldown; p_now if none was started.
-- Locks: the model's row of model_state.
-- Why: the later deadline wins: a short pause must not cut a longer one off. Calls that were in flight when the
--   cooldown started are refused too and say nothing new: they may move the deadline, but neither double the pause nor
--   lower the ceiling again.
--   After 'quota' (a 429 although the limit was kept) others may share the key: the ceiling of calls per minute becomes
--   four fifths of what was used in the last minute, so that it bites whatever the reason was. After 'capacity' (503,
--   529, no connection) the ceiling of calls in flight becomes seven tenths of what is in flight. The ceiling of calls
--   per minute falls by half at the most. After 'failures' (5xx, resets) no ceiling is lowered: these say that the
--   model is broken, not that it was asked too often.
create or replace function llmqueue_internal.start_cooldown(
    p_model text, p_refusal text, p_pause_s double precision, p_reason text, p_granted_at timestamptz,
    p_now timestamptz)
returns timestamptz language plpgsql volatile as $$
declare
    v_year_s constant double precision := 31536000::double precision;
    v_most_counted constant integer := 10000;
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
    v_pause_s := case when p_pause_s is null
                      then least(300, 2 * 2.0 ^ least(v_state.cooldowns, 10)) * (0.75 + random() / 2)
                      else greatest(least(p_pause_s, v_year_s), 0.25 * 2.0 ^ least(v_state.cooldowns, 8)) end;
    v_until := greatest(v_state.cooldown_until, p_now + make_interval(secs => v_pause_s));
    update llmqueue.model_state s
       set cooldown_started_at = case when v_is_news then p_now else coalesce(v_state.cooldown_started_at, p_now) end,
           cooldown_until = v_until,
           cooldown_reason = left(p_reason, 500),
           cooldowns = v_state.cooldowns + v_is_news::integer,
           probe_fence = null
     where s.model = p_model;
    if p_refusal = 'quota' and coalesce(p_granted_at > v_state.rpm_cut_at, true) then
        update llmqueue.model_state s
           set rpm_ceiling = greatest(1, now.rpm / 2, 0.8 * least(now.rpm, now.used)), rpm_cut_at = p_now
          from (select llmqueue_internal.effective_rpm(c.model, c.rpm, p_now)::double precision as rpm,
                       (llmqueue_internal.count_60s(c.model, p_now)).calls as used
                  from llmqueue.model_config c where c.model = p_model) now
         where s.model = p_model;
    elsif p_refusal = 'capacity' and coalesce(p_granted_at > v_state.concurrency_cut_at, true) then
        update llmqueue.model_state s
           set concurrency_ceiling = greatest(1, floor(0.7 * (
                   select count(*)
                     from (select from llmqueue.attempt a
                            where a.model = p_model and a.ended_at is null limit v_most_counted) open))),
               concurrency_cut_at = p_now
         where s.model = p_model;
    end if;
    return v_until;
end
$$;
