-- What it does: finds the next user of a lane who has a ready task of a priority: the first after p_user, then the
--   first of all.
-- Returns: one row: the user, and where the user's ready tasks begin; nulls if no user has one.
-- Locks: none.
-- Why: one step of a loose index scan. For a user with a cursor the entries before it are passed over: those tasks are
--   gone, but as long as somebody's transaction might see them, each scan reads every one of their entries.
create or replace function llmqueue_internal.next_user(
    p_lane text, p_rank bigint, p_user text, p_cursors llmqueue_internal.resume_cursor[], out user_key text,
    out due_at timestamptz, out task_id llmqueue.task_id)
language plpgsql stable as $$
declare
    v_from text := coalesce(p_user || e'\x01', '');   -- what comes right after p_user
    v_cursor llmqueue_internal.resume_cursor;
    v_is_last boolean := p_user is null;   -- from the first user on
begin
    loop
        if p_cursors is not null then
            select m.* into v_cursor from unnest(p_cursors) m
             where m.lane = p_lane and m.rank = p_rank and m.user_key collate "C" >= v_from
             order by m.user_key collate "C" limit 1;
        end if;
        if v_cursor.user_key is null then
            select t.user_key, t.due_at, t.id::llmqueue.task_id into user_key, due_at, task_id from llmqueue.task t
             where t.is_ready and t.lane = p_lane and t.rank = p_rank and t.user_key >= v_from
               and (select true from llmqueue.quarantine s where s.task_id = t.id) is null
             order by t.user_key, t.due_at, t.id limit 1;
        else
            select t.user_key, t.due_at, t.id::llmqueue.task_id into user_key, due_at, task_id from llmqueue.task t
             where t.is_ready and t.lane = p_lane and t.rank = p_rank and t.user_key >= v_from
               and t.user_key < v_cursor.user_key
               and (select true from llmqueue.quarantine s where s.task_id = t.id) is null
             order by t.user_key, t.due_at, t.id limit 1;
            if user_key is null then
                select t.user_key, t.due_at, t.id::llmqueue.task_id into user_key, due_at, task_id from llmqueue.task t
                 where t.is_ready and t.lane = p_lane and t.rank = p_rank and t.user_key = v_cursor.user_key
                   and (t.due_at, t.id) >= (v_cursor.due_at, v_cursor.task_id)
                   and (select true from llmqueue.quarantine s where s.task_id = t.id) is null
                 order by t.due_at, t.id limit 1;
            end if;
        end if;
        exit when user_key is not null or (v_cursor.user_key is null and v_is_last);
        v_is_last := v_is_last or v_cursor.user_key is null;
        v_from := coalesce(v_cursor.user_key || e'\x01', '');
    end loop;
end
$$;
