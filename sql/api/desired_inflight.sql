-- What it does: says how many calls in flight are useful, over all models, for whoever sizes the fleet.
-- Returns: what is running, and per model that may be given tasks: rpm / 60 × the mean latency × 1.2, at most its
--   effective concurrency and what is running and ready for it; over all models at most the number of tasks. A model
--   in cooldown gets one more than is running, for its probe. At least 1 while a task is delayed, since a worker has
--   to promote it.
-- Locks: none.
-- Why: a backlog behind a quota needs no more workers, only the quota does. The mean is that of the answered calls
--   among the last 20,000 attempts, which is bounded however long the log is; a model that has none among them is
--   taken for as slow as all together, and without any for 10 s. Limits on tokens and daily limits are not
--   considered. The result is no limit: a claim grants what the quota allows, however slow the calls are (decision
--   48). SECURITY DEFINER: whoever may read the views may read neither tasks nor model_state.
create or replace function llmqueue.desired_inflight()
returns integer language plpgsql stable security definer set search_path = pg_catalog, pg_temp
set jit = off set enable_seqscan = off as $$
declare
    v_sum integer;
begin
    with backlog as materialized (
        select b.model as lane, b.status, b.tasks
          from llmqueue_internal.count_backlog() b where b.status in ('unsolved', 'running', 'delayed')
    ), latency as materialized (
        select a.model, count(*) as calls, avg(a.latency_s) as mean_s
          from (select recent.model, recent.latency_s, recent.outcome
                  from llmqueue.attempt recent order by recent.fence desc limit 20000) a
         where a.outcome = 'completed' and a.latency_s is not null group by a.model
    ), usual as (
        select coalesce(sum(l.calls * l.mean_s) / sum(l.calls), 10) as mean_s from latency l
    ), work as (
        select c.model, c.rpm, c.max_concurrency, s.cooldown_until is not null as is_in_cooldown,
               coalesce((select r.tasks from backlog r
                          where r.lane = c.model and r.status = 'running'), 0) as running,
               coalesce((select sum(w.tasks) from backlog w
                          where w.status = 'unsolved' and w.lane = any (takes.lanes)), 0) as ready
          from llmqueue.model_config c
         cross join lateral (select llmqueue_internal.model_lanes(c.model) as lanes) takes
          left join llmqueue.model_state s on s.model = c.model
         where llmqueue_internal.is_enabled(c)
    ), useful as (
        select w.running,
               case when w.is_in_cooldown then w.running + least(1, w.ready)
                    else greatest(w.running,
                                  least(ceil(w.rpm / 60.0 * coalesce(l.mean_s, usual.mean_s) * 1.2),
                                        w.running + w.ready,
                                        llmqueue_internal.effective_concurrency(
                                            w.model, w.max_concurrency, llmqueue_internal.clock()))) end as calls
          from work w
         cross join usual
          left join latency l on l.model = w.model
    ), total as (
        select coalesce(sum(b.tasks) filter (where b.status = 'running'), 0) as running,
               coalesce(sum(b.tasks) filter (where b.status = 'unsolved'), 0) as ready,
               count(*) filter (where b.status = 'delayed') as delayed
          from backlog b
    )
    -- a model that was paused or removed meanwhile may have calls in flight too
    select least(greatest(total.running + least(coalesce(sum(u.calls - u.running), 0), total.ready),
                          least(total.delayed, 1)),
                 1000000000)::integer
      into v_sum
      from total left join useful u on true
     group by total.running, total.ready, total.delayed;
    return v_sum;
end
$$;
comment on function llmqueue.desired_inflight is
    'Says how many calls in flight are useful, over all models: for whoever sizes the fleet.';
