-- What it does: marks locked, ready tasks as running under a new fence each, and logs the attempts.
-- Returns: them, in the order given.
-- Locks: none beyond the rows that the caller has locked.
-- Why: a task that has ended and was set back by hand starts anew: attempts from 1, and one more restart, which is part
--   of its Idempotency-Key (I18). Row by row by the key: a join is planned for the size that the table had, and a plan
--   kept from when it was small reads all of it once it is large (design I14). An owner's trigger may keep a row as it
--   was, hence is_running.
create or replace function llmqueue.lease_rows(
    p_worker uuid, p_model text, p_ids llmqueue.task_id[], p_cell bigint, p_rpm integer, p_now timestamptz)
returns llmqueue.leased[] language plpgsql volatile
set jit = off set enable_seqscan = off set enable_bitmapscan = off as $$
declare
    v_id llmqueue.task_id;
    v_row llmqueue.leased;
    v_is_running boolean;
    v_rows llmqueue.leased[] := array[]::llmqueue.leased[];
begin
    foreach v_id in array p_ids loop
        update llmqueue.task t
           set status = llmqueue.status_word('running'),
               fence = nextval('llmqueue.fence_seq'),
               attempts = case when t.finished_at is null then coalesce(t.attempts, 0) + 1 else 1 end,
               restarts = coalesce(t.restarts, 0) + (t.finished_at is not null)::integer,
               started_at = p_now,
               finished_at = null,
               error = null
         where t.id = v_id and t.is_ready
        returning t.id::llmqueue.task_id, t.fence, t.attempts::integer, coalesce(t.max_attempts, 5)::integer,
                  t.restarts::integer, t.prompt_text, t.params::text, t.is_running
          into v_row.task_id, v_row.fence, v_row.attempt_no, v_row.max_attempts, v_row.restarts, v_row.prompt, v_row.params,
               v_is_running;
        if v_is_running then
            v_rows := v_rows || v_row;
        end if;
    end loop;
    insert into llmqueue.attempt (fence, task_id, model, worker, attempt_no, granted_at, cell, rpm)
    select r.fence, r.task_id, p_model, p_worker, r.attempt_no, p_now, p_cell, p_rpm from unnest(v_rows) r;
    return v_rows;
end
$$;
