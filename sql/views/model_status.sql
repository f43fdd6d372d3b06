-- Each configured model: its limits, what it used of them in the last minute, and what waits for it by name.
create view llmqueue.model_status as
select c.model,
       c.enabled,
       c.rpm,
       c.max_concurrency,
       c.timeout,
       used.calls_60s,
       round(100.0 * used.calls_60s / nullif(c.rpm, 0), 1) as use_pct,
       (select count(*) from llmqueue.attempt a where a.model = c.model and a.ended_at is null) as running,
       lane.tasks as ready,
       lane.is_estimate as ready_is_estimate,
       lane.oldest_at as oldest_ready_at
  from llmqueue.model_config c
 cross join lateral (select llmqueue.count_calls(c.model) as calls_60s) used
 cross join lateral llmqueue.count_ready(c.model) lane;
comment on view llmqueue.model_status is 'Limits of each model, its calls in the last 60 s, and what is running and ready.';
