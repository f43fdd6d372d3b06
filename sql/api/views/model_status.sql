-- Each configured model: its limits, what it used of them in the last minute and today, and what waits for it by name.
-- cooldown_until and cooldown_reason are set while it is in cooldown, until a probe has been answered.
create view llmqueue.model_status as
select c.model,
       c.enabled,
       c.rpm,
       c.max_concurrency,
       c.timeout,
       used.calls as calls_60s,
       round(100.0 * used.calls / nullif(c.rpm, 0), 1) as use_pct,
       (select count(*) from llmqueue.attempt a where a.model = c.model and a.ended_at is null) as running,
       lane.tasks as ready,
       lane.is_estimate as ready_is_estimate,
       lane.oldest_at as oldest_ready_at,
       c.tpm,
       c.output_tpm,
       c.token_mode,
       c.weight,
       c.hot_share,
       llmqueue_internal.effective_rpm(c.model, c.rpm, llmqueue_internal.clock()) as effective_rpm,
       used.tokens as tokens_60s,
       used.output_tokens as output_tokens_60s,
       round(100.0 * used.tokens / nullif(c.tpm, 0), 1) as tpm_use_pct,
       c.rpd,
       today.calls as calls_today,
       c.tpd,
       today.tokens as tokens_today,
       s.cooldown_until,
       case when s.cooldown_until is not null then s.cooldown_reason end as cooldown_reason,
       c.burst_windows,
       c.max_output,
       c.quota_timezone,
       llmqueue_internal.effective_concurrency(c.model, c.max_concurrency, llmqueue_internal.clock())
           as effective_concurrency,
       c.on_crash,
       c.dispatch,
       c.max_batch,
       not llmqueue_internal.is_enabled(c) as is_paused,
       -- 36 hours after the day has begun it is the next day, also where a clock is set forward or back
       llmqueue_internal.day_start(c.quota_timezone, llmqueue_internal.day_start(
           c.quota_timezone, llmqueue_internal.clock()) + interval '36 hours') as day_ends_at
  from llmqueue.model_config c
  left join llmqueue.model_state s on s.model = c.model
 cross join lateral llmqueue_internal.count_60s(c.model, llmqueue_internal.clock()) used
 cross join lateral llmqueue_internal.count_today(c.model, c.quota_timezone, llmqueue_internal.clock()) today
 cross join lateral llmqueue_internal.count_ready(c.model) lane;
comment on view llmqueue.model_status is
    'Limits of each model, what it used of them, what is running and ready, and whether it is in cooldown.';
