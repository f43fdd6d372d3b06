-- What it does: looks for ready tasks that lie before a mark: given back, or committed late.
-- Returns: the marks that have none; where there is one, reading begins anew.
-- Locks: none.
-- Why: it reads all that the marks let others pass over, so claim() calls it for a twentieth of the time at most. Tasks that
--   somebody's transaction has locked are such tasks too: nobody can tell when it lets go of them.
create or replace function llmqueue.look_behind(p_marks llmqueue.mark[])
returns llmqueue.mark[] language plpgsql stable
set jit = off set plan_cache_mode = force_generic_plan set enable_seqscan = off set enable_bitmapscan = off set enable_sort = off as $$
declare
    v_mark llmqueue.mark;
    v_kept llmqueue.mark[] := array[]::llmqueue.mark[];
begin
    foreach v_mark in array p_marks loop
        if v_mark.rank is null then
            perform from llmqueue.task t
              where t.is_ready and t.lane = v_mark.lane and (t.waiting_since, t.id) < (v_mark.due_at, v_mark.task_id)
                and (select true from llmqueue.set_aside s where s.task_id = t.id) is null
              order by t.waiting_since, t.id limit 1;
        else
            perform from llmqueue.task t
              where t.is_ready and t.lane = v_mark.lane and t.rank = v_mark.rank and t.user_key = v_mark.user_key
                and (t.due_at, t.id) < (v_mark.due_at, v_mark.task_id)
                and (select true from llmqueue.set_aside s where s.task_id = t.id) is null
              order by t.due_at, t.id limit 1;
        end if;
        if not found then
            v_kept := v_kept || v_mark;
        end if;
    end loop;
    return v_kept;
end
$$;
