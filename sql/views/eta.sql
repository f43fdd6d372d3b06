-- How long the ready tasks take at the least, by lane ('': the default pool); null when nobody may run them.
-- A model works off its own lane at its rpm. The default pool fills what the models have left: level by level, the
-- models that are free first join in, and the time is the smallest over these groups of (their tasks + the pool's) /
-- (their rpm). Latency and max_concurrency can only make it longer.
create view llmqueue.eta as
with lane as materialized (
    select b.model, b.tasks from llmqueue.count_backlog() b where b.status = 'unsolved'
), able as (
    select c.model, c.rpm, coalesce(lane.tasks, 0) as own
      from llmqueue.model_config c
      left join lane on lane.model = c.model
     where c.enabled and c.rpm > 0 and coalesce(c.max_concurrency, 1) > 0
), grouped as (
    select sum(able.own) over freest_first as own, sum(able.rpm) over freest_first as rpm
      from able
    window freest_first as (order by able.own::double precision / able.rpm, able.model)
)
select lane.model,
       lane.tasks as ready,
       case when lane.model = '' then (select sum(able.rpm) from able) else able.rpm end as rpm,
       case when lane.model = ''
            then (select ceil(min(60.0 * (grouped.own + lane.tasks) / grouped.rpm)) from grouped)
            else ceil(60.0 * lane.tasks / able.rpm) end::bigint as seconds_left
  from lane
  left join able on able.model = lane.model;
comment on view llmqueue.eta is 'The least time that the ready tasks take at the models'' rpm.';
