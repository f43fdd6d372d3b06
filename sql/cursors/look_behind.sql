-- What it does: looks for ready tasks that lie before a cursor: given back, or committed late.
-- Returns: the cursors that have none; where there is one, scans start at the beginning again.
-- Locks: none.
-- Why: it reads all entries that the cursors save, so claim() calls it for 5 % of the time at most. Tasks that
--   somebody's transaction has locked count too: nobody can tell when it lets go of them.
create or replace function llmqueue_internal.look_behind(p_cursors llmqueue_internal.resume_cursor[])
returns llmqueue_internal.resume_cursor[] language plpgsql stable as $$
declare
    v_cursor llmqueue_internal.resume_cursor;
    v_kept_cursors llmqueue_internal.resume_cursor[] := array[]::llmqueue_internal.resume_cursor[];
begin
    foreach v_cursor in array p_cursors loop
        if v_cursor.rank is null then
            perform from llmqueue.task t
              where t.is_ready and t.lane = v_cursor.lane
                and (t.waiting_since, t.id) < (v_cursor.due_at, v_cursor.task_id)
                and (select true from llmqueue.quarantine s where s.task_id = t.id) is null
              order by t.waiting_since, t.id limit 1;
        else
            perform from llmqueue.task t
              where t.is_ready and t.lane = v_cursor.lane and t.rank = v_cursor.rank and t.user_key = v_cursor.user_key
                and (t.due_at, t.id) < (v_cursor.due_at, v_cursor.task_id)
                and (select true from llmqueue.quarantine s where s.task_id = t.id) is null
              order by t.due_at, t.id limit 1;
        end if;
        if not found then
            v_kept_cursors := v_kept_cursors || v_cursor;
        end if;
    end loop;
    return v_kept_cursors;
end
$$;
