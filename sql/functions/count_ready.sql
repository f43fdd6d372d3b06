-- What it does: counts the ready tasks of a lane: exactly up to 10,000, beyond that by an estimate.
-- Returns: one row: tasks, is_estimate, and since when the oldest has been due (null when that is not known).
-- Locks: none.
-- Why: no listing may count a backlog of millions (I19). The oldest of a large lane is looked for at
--   the head of each of its 100 highest priorities. SECURITY DEFINER: who may read the views need not read the tasks.
create or replace function llmqueue.count_ready(
    p_lane text, out tasks bigint, out is_estimate boolean, out oldest_at timestamptz)
language plpgsql stable security definer set search_path = pg_catalog, pg_temp
set jit = off set enable_seqscan = off set enable_bitmapscan = off as $$
declare
    v_cap constant integer := 10000;
begin
    select count(*), min(nullif(head.due_at, '-infinity')) into tasks, oldest_at
      from (select t.due_at from llmqueue.task t
             where t.is_ready and t.lane = p_lane order by t.rank desc, t.due_at limit v_cap + 1) head;
    is_estimate := tasks > v_cap;
    if not is_estimate then
        -- what is set aside does not wait for a model; `status` shows it by itself
        tasks := tasks - (select count(*)
                            from (select s.task_id from llmqueue.set_aside s limit v_cap) aside
                           cross join lateral (select from llmqueue.task t
                                                where t.id = aside.task_id and t.is_ready and t.lane = p_lane limit 1) t);
        return;
    end if;
    tasks := greatest(tasks, llmqueue.estimate_ready(p_lane));
    with recursive ranks as (
        (select t.rank, t.due_at from llmqueue.task t
          where t.is_ready and t.lane = p_lane order by t.rank desc, t.due_at limit 1)
        union all
        (select next.rank, next.due_at
           from ranks
          cross join lateral (select t.rank, t.due_at from llmqueue.task t
                               where t.is_ready and t.lane = p_lane and t.rank < ranks.rank
                               order by t.rank desc, t.due_at limit 1) next)
    )
    select least(oldest_at, min(nullif(heads.due_at, '-infinity'))) into oldest_at
      from (select ranks.due_at from ranks limit 100) heads;
end
$$;
