-- What it does: finds the ready task of a lane that has waited longest.
-- Returns: one row: since when, and its key; nulls if there is none.
-- Locks: none.
-- Why: the oldest task has every tenth grant (I13), and a claim wants to know whether a lane has any. With a cursor the
--   entries before it are passed over, as in next_user().
create or replace function llmqueue_internal.first_waiting(
    p_lane text, p_cursors llmqueue_internal.resume_cursor[], out waiting_since timestamptz,
    out task_id llmqueue.task_id)
language plpgsql stable as $$
declare
    v_cursor llmqueue_internal.resume_cursor;
begin
    if p_cursors is not null then
        select m.* into v_cursor from unnest(p_cursors) m where m.lane = p_lane and m.rank is null limit 1;
    end if;
    if v_cursor.lane is null then
        select t.waiting_since, t.id::llmqueue.task_id into waiting_since, task_id from llmqueue.task t
         where t.is_ready and t.lane = p_lane
           and (select true from llmqueue.quarantine s where s.task_id = t.id) is null
         order by t.waiting_since, t.id limit 1;
    else
        select t.waiting_since, t.id::llmqueue.task_id into waiting_since, task_id from llmqueue.task t
         where t.is_ready and t.lane = p_lane and (t.waiting_since, t.id) >= (v_cursor.due_at, v_cursor.task_id)
           and (select true from llmqueue.quarantine s where s.task_id = t.id) is null
         order by t.waiting_since, t.id limit 1;
    end if;
end
$$;
