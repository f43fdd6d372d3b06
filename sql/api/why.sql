-- What it does: says what a task waits for, and until when; `llmqueue why` turns it into sentences.
-- Returns: no row for an unknown key; for a ready task a row per model that could take it, else one. reason is null when
--   nothing holds the task up; until_at is null when no time is known; what else there is to say is in detail.
-- Locks: none.
-- Why: read by the same functions as a claim, so that both say the same. All counts are bounded (I19).
create or replace function llmqueue.why(p_task_id llmqueue.task_id)
returns table (state text, reason text, until_at timestamptz, model text, detail jsonb) language plpgsql stable
security definer set search_path = pg_catalog, pg_temp set jit = off set enable_seqscan = off set enable_bitmapscan = off as $$
declare
    v_now timestamptz := llmqueue_internal.clock();
    v_task record;
    v_aside record;
begin
    select t.lane, t.status::text as status, t.deadline_at, t.is_ended, t.is_running, t.is_delayed, t.is_ready into v_task
      from llmqueue.task t where t.id = p_task_id;
    if not found then
        return;
    end if;
    if v_task.is_ended then
        return query select w.state, w.reason, null::timestamptz, w.model, w.detail from llmqueue_internal.why_ended(p_task_id) w;
        return;
    end if;
    select s.step, s.reason, s.quarantined_at into v_aside from llmqueue.quarantine s where s.task_id = p_task_id;
    if found then
        return query select 'quarantined', 'quarantined', null::timestamptz, nullif(v_task.lane, ''),
            jsonb_build_object('step', v_aside.step, 'error', v_aside.reason, 'since', v_aside.quarantined_at);
    elsif v_task.is_running then
        return query select 'running', w.reason, w.until_at, w.model, w.detail from llmqueue_internal.why_running(p_task_id, v_now) w;
    elsif v_task.is_delayed then
        return query select 'delayed', w.reason, w.until_at, w.model, w.detail from llmqueue_internal.why_delayed(p_task_id, v_now) w;
    elsif v_task.is_ready then
        return query select 'ready', w.reason, w.until_at, w.model, w.detail from llmqueue_internal.why_ready(p_task_id, v_now) w;
    else
        return query select 'unknown', 'not_queued', null::timestamptz, nullif(v_task.lane, ''),
            jsonb_build_object('status', v_task.status);
    end if;
end
$$;
comment on function llmqueue.why is
    'Says what a task waits for, and until when.';
