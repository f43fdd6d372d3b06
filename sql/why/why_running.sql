-- What it does: says who runs a task, since when, and how long that may take.
-- Returns: one row; reason 'running' until its timeout; 'worker_dead' until its worker's lease is over, when another one
--   makes the task ready; 'no_attempt' when nobody runs it, whatever its status says.
-- Locks: none.
-- Why: a part of why(). A worker lives by the rule of sweep(): a heartbeat more than a lease ahead is from before a step
--   back of the clock.
create or replace function llmqueue_internal.why_running(
    p_task_id llmqueue.task_id, p_now timestamptz,
    out reason text, out until_at timestamptz, out model text, out detail jsonb)
language plpgsql stable set jit = off set enable_seqscan = off set enable_bitmapscan = off as $$
declare
    v_task record;
    v_attempt record;
    v_worker record;
    v_timeout interval;
    v_is_alive boolean;
begin
    select t.lane, t.fence, coalesce(t.max_attempts, 5) as max_attempts into strict v_task
      from llmqueue.task t where t.id = p_task_id;
    select a.model, a.worker, a.attempt_no, a.granted_at, a.is_probe into v_attempt
      from llmqueue.attempt a where a.fence = v_task.fence and a.task_id = p_task_id and a.ended_at is null;
    if not found then
        reason := 'no_attempt';
        model := nullif(v_task.lane, '');
        detail := '{}';
        return;
    end if;
    select w.name, w.heartbeat_at, w.lease_s into v_worker from llmqueue.worker w where w.worker = v_attempt.worker;
    select c.timeout into v_timeout from llmqueue.model_config c where c.model = v_attempt.model;
    v_is_alive := coalesce(abs(extract(epoch from p_now - v_worker.heartbeat_at)) < v_worker.lease_s, false);
    model := v_attempt.model;
    reason := case when v_is_alive then 'running' else 'worker_dead' end;
    until_at := case when v_is_alive then v_attempt.granted_at + v_timeout
                     else v_worker.heartbeat_at + make_interval(secs => v_worker.lease_s) end;
    detail := jsonb_strip_nulls(jsonb_build_object(
        'since', v_attempt.granted_at, 'attempt', v_attempt.attempt_no, 'max_attempts', v_task.max_attempts,
        'is_probe', v_attempt.is_probe, 'worker', v_worker.name, 'is_alive', v_is_alive,
        'heartbeat_age_s', round(extract(epoch from p_now - v_worker.heartbeat_at), 1),
        'timeout_s', extract(epoch from v_timeout),
        'live_workers', (select w.live from llmqueue_internal.workers_of(null, p_now) w)));
end
$$;
