-- What it does: says until when a delayed task waits, and what for.
-- Returns: one row; reason 'retry' after an attempt that failed, 'refused' after one that the model refused, else 'run_at'.
-- Locks: none.
-- Why: a part of why(). A run_at written by hand after the attempt's end is not told from the attempt's own: the error is
--   what the task waits for in either case.
create or replace function llmqueue_internal.why_delayed(
    p_task_id llmqueue.task_id, p_now timestamptz,
    out reason text, out until_at timestamptz, out model text, out detail jsonb)
language plpgsql stable set jit = off set enable_seqscan = off set enable_bitmapscan = off as $$
declare
    v_task record;
    v_last record;
begin
    select t.lane, t.due_at, t.deadline_at, t.error::text as error, coalesce(t.attempts, 0) as attempts,
           coalesce(t.max_attempts, 5) as max_attempts
      into strict v_task from llmqueue.task t where t.id = p_task_id;
    select a.model, a.outcome, a.error_class, a.ended_at into v_last
      from llmqueue.attempt a where a.task_id = p_task_id order by a.fence desc limit 1;
    reason := case v_last.outcome when 'retried' then 'retry' when 'refused' then 'refused' else 'run_at' end;
    until_at := v_task.due_at;
    model := coalesce(nullif(v_task.lane, ''), v_last.model);
    detail := jsonb_strip_nulls(jsonb_build_object(
        'error', v_task.error, 'attempts', v_task.attempts, 'max_attempts', v_task.max_attempts,
        'last_model', v_last.model, 'last_error_class', v_last.error_class, 'is_failure', nullif(v_last.error_class ~ '^(http_5|connection_lost)', false), 'last_ended_at', v_last.ended_at,
        'deadline_at', v_task.deadline_at, 'live_workers', (select w.live from llmqueue_internal.workers_of(null, p_now) w)));
end
$$;
