-- What it does: counts the ready tasks of a lane: exactly up to 10,000, beyond that by an estimate.
-- Returns: one row: tasks, is_estimate, and since when the oldest has been due (null when that is not known).
-- Locks: none.
-- Why: no listing may count a backlog of millions (I19). The oldest is one probe of the index llmqueue_oldest, whatever
--   its priority, and the count goes along it too, which is the order of most tables' pages. SECURITY DEFINER: who may read
--   the views need not read the tasks.
create or replace function llmqueue_internal.count_ready(
    p_lane text, out tasks bigint, out is_estimate boolean, out oldest_at timestamptz)
language plpgsql stable security definer set search_path = pg_catalog, pg_temp
set jit = off set enable_seqscan = off set enable_bitmapscan = off set enable_sort = off as $$
declare
    v_cap constant integer := 10000;
begin
    oldest_at := (select t.waiting_since from llmqueue.task t
                   where t.is_ready and t.lane = p_lane and t.waiting_since > '-infinity' and t.waiting_since < 'infinity'
                   order by t.waiting_since limit 1);
    select count(*) into tasks
      from (select from llmqueue.task t where t.is_ready and t.lane = p_lane order by t.waiting_since limit v_cap + 1) head;
    is_estimate := tasks > v_cap;
    if is_estimate then
        tasks := greatest(tasks, llmqueue_internal.estimate_ready(p_lane));
    else
        -- what is set aside does not wait for a model; `status` shows it by itself
        tasks := tasks - (select count(*)
                            from (select s.task_id from llmqueue.quarantine s limit v_cap) aside
                           cross join lateral (select from llmqueue.task t
                                                where t.id = aside.task_id and t.is_ready and t.lane = p_lane limit 1) t);
    end if;
end
$$;
