-- What it does: counts the ready tasks of a lane that are ahead of a task, which may be of that lane or of another.
-- Returns: one row: higher (of higher priority), older (due before it, whatever their priority), and for each whether
--   the count is exact or stopped after p_cap tasks.
-- Locks: none.
-- Why: a task waits for those of higher priority; its age bounds that, since one grant in ten goes to the oldest
--   task. Tasks that are not due, past their deadline or in quarantine are ahead of nobody; they count towards p_cap
--   only (I19).
create or replace function llmqueue_internal.count_before(
    p_lane text, p_task_id llmqueue.task_id, p_cap integer, p_now timestamptz,
    out higher bigint, out higher_is_exact boolean, out older bigint, out older_is_exact boolean)
language plpgsql stable as $$
declare
    v_task record;
    -- seldom; a lookup per task doubles the time
    v_has_quarantine constant boolean := exists (select from llmqueue.quarantine);
begin
    select t.id, t.rank::bigint as rank, t.due_at into strict v_task from llmqueue.task t where t.id = p_task_id;
    select count(*) filter (where x.due_at <= p_now and (x.deadline_at <= p_now) is not true
                              and (not v_has_quarantine
                                   or (select true from llmqueue.quarantine s where s.task_id = x.id) is null)),
           count(*) <= p_cap
      into higher, higher_is_exact
      from (select t.id, t.due_at, t.deadline_at from llmqueue.task t
             where t.is_ready and t.lane = p_lane and t.rank > v_task.rank
             order by t.rank desc, t.user_key, t.due_at, t.id limit p_cap + 1) x;
    select count(*) filter (where (x.deadline_at <= p_now) is not true
                              and (not v_has_quarantine
                                   or (select true from llmqueue.quarantine s where s.task_id = x.id) is null)),
           count(*) <= p_cap
      into older, older_is_exact
      from (select t.id, t.deadline_at from llmqueue.task t
             where t.is_ready and t.lane = p_lane and (t.waiting_since, t.id) < (v_task.due_at, v_task.id)
             order by t.waiting_since, t.id limit p_cap + 1) x;
    higher := least(higher, p_cap);
    older := least(older, p_cap);
end
$$;
