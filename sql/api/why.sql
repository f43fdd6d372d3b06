-- What it does: says what a task waits for, and until when; `llmqueue why` turns it into sentences.
-- Returns: no row for an unknown key; for a ready task a row per model that could take it, else one row. reason is null
--   when nothing holds the task up; until_at is null when no time is known; detail has all numbers.
--   A delayed task: reason 'retry' after an attempt that failed, 'refused' after one that the model refused, else
--   'run_at'. A running one: 'running' until its timeout; 'worker_dead' until its worker's lease is over, when another
--   worker makes the task ready; 'no_attempt' when nobody runs it, whatever its status says.
-- Locks: none.
-- Why: the same functions as in a claim, so that both say the same. All counts are bounded (I19). A worker lives by the
--   rule of sweep(). An owner may end or delay a task by plain SQL: there need be no attempt and no finished_at, and a
--   run_at of the owner's is not told from that of a retry.
create or replace function llmqueue.why(p_task_id llmqueue.task_id)
returns table (state text, reason text, until_at timestamptz, model text, detail jsonb) language plpgsql stable
security definer set search_path = pg_catalog, pg_temp
set jit = off set enable_seqscan = off set enable_bitmapscan = off as $$
declare
    v_now constant timestamptz := llmqueue_internal.clock();
    v_task record;
    v_last record;      -- the newest attempt
    v_quarantine record;
    v_worker record;
    v_timeout interval;
    v_is_alive boolean;
begin
    select t.lane, t.status::text as status, t.error::text as error, t.attempts, t.due_at, t.deadline_at, t.finished_at,
           t.fence, coalesce(t.max_attempts, 5) as max_attempts, t.is_ended, t.is_failed, t.is_running, t.is_delayed,
           t.is_ready, coalesce(t.status = llmqueue_internal.status_word('cancelled'), false) as is_cancelled
      into v_task from llmqueue.task t where t.id = p_task_id;
    if not found then
        return;
    end if;
    select s.step, s.reason, s.quarantined_at into v_quarantine
      from llmqueue.quarantine s where s.task_id = p_task_id;

    if v_task.is_ended then
        select a.model, a.outcome, a.error_class, a.error into v_last
          from llmqueue.attempt a where a.task_id = p_task_id order by a.fence desc limit 1;
        state := case when v_task.is_failed then 'failed' when v_task.is_cancelled then 'cancelled' else 'solved' end;
        reason := 'ended';
        model := coalesce(v_last.model, nullif(v_task.lane, ''));
        detail := jsonb_strip_nulls(jsonb_build_object(
            'ended_at', v_task.finished_at, 'error', v_task.error, 'attempts', v_task.attempts,
            'last_outcome', v_last.outcome, 'last_error_class', v_last.error_class, 'last_error', v_last.error));
    elsif v_quarantine.step is not null then
        state := 'quarantined';
        reason := 'quarantined';
        model := nullif(v_task.lane, '');
        detail := jsonb_build_object(
            'step', v_quarantine.step, 'error', v_quarantine.reason, 'since', v_quarantine.quarantined_at);
    elsif v_task.is_running then
        state := 'running';
        select a.model, a.worker, a.attempt_no, a.granted_at, a.is_probe into v_last
          from llmqueue.attempt a where a.fence = v_task.fence and a.task_id = p_task_id and a.ended_at is null;
        if not found then
            reason := 'no_attempt';
            model := nullif(v_task.lane, '');
            detail := '{}';
        else
            select w.name, w.heartbeat_at, w.lease_s into v_worker
              from llmqueue.worker w where w.worker = v_last.worker;
            select c.timeout into v_timeout from llmqueue.model_config c where c.model = v_last.model;
            v_is_alive := coalesce(abs(extract(epoch from v_now - v_worker.heartbeat_at)) < v_worker.lease_s, false);
            reason := case when v_is_alive then 'running' else 'worker_dead' end;
            until_at := case when v_is_alive then v_last.granted_at + v_timeout
                             else v_worker.heartbeat_at + make_interval(secs => v_worker.lease_s) end;
            model := v_last.model;
            detail := jsonb_strip_nulls(jsonb_build_object(
                'since', v_last.granted_at, 'attempt', v_last.attempt_no, 'max_attempts', v_task.max_attempts,
                'is_probe', v_last.is_probe, 'worker', v_worker.name, 'is_alive', v_is_alive,
                'heartbeat_age_s', round(extract(epoch from v_now - v_worker.heartbeat_at), 1),
                'timeout_s', extract(epoch from v_timeout),
                'live_workers', (select w.live from llmqueue_internal.workers_of(null, v_now) w)));
        end if;
    elsif v_task.is_delayed then
        state := 'delayed';
        select a.model, a.outcome, a.error_class, a.ended_at into v_last
          from llmqueue.attempt a where a.task_id = p_task_id order by a.fence desc limit 1;
        reason := case v_last.outcome when 'retried' then 'retry' when 'refused' then 'refused' else 'run_at' end;
        until_at := v_task.due_at;
        model := coalesce(nullif(v_task.lane, ''), v_last.model);
        detail := jsonb_strip_nulls(jsonb_build_object(
            'error', v_task.error, 'attempts', coalesce(v_task.attempts, 0), 'max_attempts', v_task.max_attempts,
            'last_model', v_last.model, 'last_error_class', v_last.error_class, 'last_ended_at', v_last.ended_at,
            'is_failure', nullif(v_last.error_class ~ '^(http_5|connection_lost)', false),
            'deadline_at', v_task.deadline_at,
            'live_workers', (select w.live from llmqueue_internal.workers_of(null, v_now) w)));
    elsif v_task.is_ready then
        return query select 'ready', w.reason, w.until_at, w.model, w.detail
                       from llmqueue_internal.why_ready(p_task_id, v_now) w;
        return;
    else
        state := 'unknown';
        reason := 'not_queued';
        model := nullif(v_task.lane, '');
        detail := jsonb_build_object('status', v_task.status);
    end if;
    return next;
end
$$;
comment on function llmqueue.why is
    'Says what a task waits for, until when, and how many tasks are ahead of it.';
