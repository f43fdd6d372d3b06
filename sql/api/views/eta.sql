-- The least time that the ready tasks take, by lane (a model, a pool, or '': the default pool); null when no model
-- may run them. A model works off its own lane at its rpm. A pool fills what its models have left: level by level,
-- the models that are free first join in, and the time is the smallest over these groups of (their tasks + the
-- pool's) / (their rpm). Other pools, limits on tokens, daily limits, latency, cooldowns and max_concurrency can
-- only make it longer.
create view llmqueue.eta as
with lane as materialized (
    select b.model as lane, b.tasks from llmqueue_internal.count_backlog() b where b.status = 'unsolved'
), enabled as materialized (
    select c.model, c.rpm, c.weight, coalesce(lane.tasks, 0) as own
      from llmqueue.model_config c
      left join lane on lane.lane = c.model
     where llmqueue_internal.is_enabled(c)
), member as (
    select lane.lane, lane.tasks, enabled.model, enabled.rpm,
           case when enabled.model = lane.lane then 0 else enabled.own end as own
      from lane
      join enabled on enabled.model = lane.lane
                or case when lane.lane = '' then enabled.weight > 0
                        else exists (select from llmqueue.pool_member p
                                      where p.pool = lane.lane and p.model = enabled.model) end
), grouped as (
    select member.lane, member.tasks, sum(member.own) over freest_first as own, sum(member.rpm) over freest_first as rpm
      from member
    window freest_first as (partition by member.lane order by member.own::double precision / member.rpm, member.model)
)
select lane.lane as model,
       lane.tasks as ready,
       (select sum(member.rpm) from member where member.lane = lane.lane) as rpm,
       (select ceil(min(60.0 * (grouped.own + grouped.tasks) / grouped.rpm))
          from grouped where grouped.lane = lane.lane)::bigint as seconds_left
  from lane;
comment on view llmqueue.eta is 'The least time that the ready tasks take at the models'' rpm.';
