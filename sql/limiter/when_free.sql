-- What it does: says when a model may be given its next call, and which limit that is waiting for.
-- Returns: one row: reason null and retry_at = the budget's time when it may be given now, else 'rpm', 'pace', 'burst',
--   'tpm' or 'day', whichever ends last. p_calls: how many calls are worth coming back for, as far as the pace is
--   concerned.
-- Locks: none.
-- Why: a refusal says when to come back, and workers sleep until then (I6).
create or replace function llmqueue_internal.when_free(
    p_budget llmqueue_internal.budget, p_is_hot boolean, p_calls integer, p_tokens bigint, p_output_tokens bigint,
    out reason text, out retry_at timestamptz)
language plpgsql stable as $$
declare
    v_config llmqueue.model_config := p_budget.configured;
    v_now timestamptz := p_budget.granted_at;
    v_tick constant interval := interval '1 microsecond';   -- rounding must not make it too early
    -- hot tasks may run a second ahead of the pace
    v_debt double precision := case when p_is_hot then 1 else 0 end::double precision;
    v_token_rate double precision := nullif(v_config.tpm, 0) / p_budget.window_s;
    v_wait record;
begin
    retry_at := v_now;
    for v_wait in
        select 'rpm' as reason,
               llmqueue_internal.frees_at(p_budget.model, p_budget.span_s,
                   1 - p_budget.rpm_free + case when p_is_hot then 0 else p_budget.reserve end, 0, 0, v_now) as retry_at
        union all
        select 'tpm',
               llmqueue_internal.frees_at(p_budget.model, p_budget.span_s, 0,
                   -- a task that needs more than the reserve leaves is let into it, see admit()
                   greatest(p_tokens, least(p_tokens + case when p_is_hot then 0 else p_budget.token_reserve end,
                                            v_config.tpm))
                   - p_budget.tpm_free,
                   p_output_tokens - p_budget.output_free, v_now)
         where p_tokens > 0 or p_output_tokens > 0
        union all
        select 'burst', llmqueue_internal.frees_at(p_budget.model, b.seconds + p_budget.span_s - p_budget.window_s,
                                                   1 - b.free, 0, 0, v_now)
          from llmqueue_internal.burst_headroom(p_budget) b
        union all
        select 'day', llmqueue_internal.day_start(v_config.quota_timezone,
            llmqueue_internal.day_start(v_config.quota_timezone, v_now) + interval '36 hours')
         where p_budget.day_calls < 1 or p_budget.day_tokens < p_tokens + p_output_tokens
        union all
        select 'pace', v_now + v_tick + make_interval(secs =>
                   (greatest(1, least(p_calls, p_budget.capacity / 4)) - p_budget.level - v_debt * p_budget.capacity)
                       * p_budget.window_s / p_budget.rpm)
         where floor(p_budget.level + v_debt * p_budget.capacity) < 1
        union all
        select 'pace', v_now + v_tick + make_interval(secs => -p_budget.token_level / v_token_rate)
         where p_tokens > 0 and p_budget.token_level <= 0 and not p_is_hot
    loop
        v_wait.retry_at := coalesce(v_wait.retry_at, v_now + make_interval(secs => p_budget.span_s));
        if v_wait.retry_at > retry_at then
            reason := v_wait.reason;
            retry_at := v_wait.retry_at;
        end if;
    end loop;
end
$$;
