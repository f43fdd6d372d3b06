-- What it does: says how many calls are useful at once, over all models: for whoever sizes the fleet.
-- Returns: the sum over the models of rpm / 60 × mean latency × 1.2, of each at most its effective concurrency and what is running
--   and ready for it; of all together at most the tasks there are. A model that is closed counts 1 while tasks wait, for its probe.
-- Locks: none.
-- Why: a backlog behind a quota needs no more workers, only the quota does. The mean is that of the last 20,000 attempts, which is
--   bounded however long the log is; a model that has none in there is taken for as slow as all together, and without any 10 s.
--   It is no limit: a claim gives what the quota allows, however slow the calls are (decision 48).
create or replace function llmqueue.desired_inflight()
returns integer language plpgsql stable set jit = off as $$
declare
    v_sum integer;
begin
    with backlog as materialized (
        select b.model as lane, b.status, b.tasks from llmqueue.count_backlog() b where b.status in ('unsolved', 'running')
    ), latency as materialized (
        select a.model, count(*) as calls, avg(a.latency_s) as mean_s
          from (select recent.model, recent.latency_s from llmqueue.attempt recent order by recent.fence desc limit 20000) a
         where a.latency_s is not null group by a.model
    ), usual as (
        select coalesce(sum(l.calls * l.mean_s) / sum(l.calls), 10) as mean_s from latency l
    ), work as (
        select c.model, c.rpm, c.max_concurrency, s.closed_until,
               coalesce((select r.tasks from backlog r where r.lane = c.model and r.status = 'running'), 0) as running,
               coalesce((select sum(w.tasks) from backlog w
                          where w.status = 'unsolved'
                            and (w.lane = c.model or (w.lane = '' and c.weight > 0)
                                 or w.lane in (select p.pool from llmqueue.pool_member p where p.model = c.model))), 0) as ready
          from llmqueue.model_config c
          left join llmqueue.model_state s on s.model = c.model
         where llmqueue.is_able(c)
    ), useful as (
        select w.model, w.running + w.ready as tasks,
               case when w.closed_until > clock_timestamp() then w.running + least(1, w.ready)
                    else least(ceil(w.rpm / 60.0 * coalesce(l.mean_s, usual.mean_s) * 1.2), w.running + w.ready,
                               llmqueue.effective_concurrency(w.model, w.max_concurrency)) end as calls
          from work w
         cross join usual
          left join latency l on l.model = w.model
         where w.running + w.ready > 0
    )
    select least(coalesce(sum(u.calls), 0), (select sum(b.tasks) from backlog b), 1000000000)::integer into v_sum from useful u;
    return v_sum;
end
$$;
