-- What it does: counts the tasks that are not solved, by lane and status, for the view llmqueue.backlog.
-- Returns: a row per lane ('': the default pool) and status that has any; a count beyond 10,000 is an estimate.
-- Locks: none.
-- Why: lanes are found by a loose index scan, one probe each; every count is capped (I19). Running tasks are counted in
--   the attempt log by their model: there are at most as many as the workers have slots. The planner settings are here
--   and not on an API function, because a view calls this function.
create or replace function llmqueue_internal.count_backlog()
returns table (model text, status text, tasks bigint, is_estimate boolean, oldest_at timestamptz)
language plpgsql stable security definer set search_path = pg_catalog, pg_temp
set jit = off set enable_seqscan = off set enable_bitmapscan = off as $$
declare
    v_cap constant integer := 10000;
begin
    return query
        with recursive lanes as (
            (select t.lane from llmqueue.task t where t.is_ready order by t.lane limit 1)
            union all
            select (select t.lane from llmqueue.task t where t.is_ready and t.lane > lanes.lane order by t.lane limit 1)
              from lanes where lanes.lane is not null
        )
        select lanes.lane, 'unsolved', counted.tasks, counted.is_estimate, counted.oldest_at
          from lanes cross join lateral llmqueue_internal.count_ready(lanes.lane) counted
         where lanes.lane is not null;
    return query
        select a.model, 'running', count(*), false, min(a.granted_at)
          from llmqueue.attempt a where a.ended_at is null group by a.model;
    return query
        select head.lane, 'delayed', count(*), sum(count(*)) over () > v_cap, min(nullif(head.due_at, '-infinity'))
          from (select t.lane, t.due_at from llmqueue.task t
                 where t.is_delayed order by t.due_at limit v_cap + 1) head
         group by head.lane;
    return query
        select head.lane, 'failed', count(*), sum(count(*)) over () > v_cap, min(head.finished_at)
          from (select t.lane, t.finished_at from llmqueue.task t
                 where t.is_failed order by t.finished_at desc limit v_cap + 1) head
         group by head.lane;
end
$$;
