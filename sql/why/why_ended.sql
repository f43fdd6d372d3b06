-- What it does: says how and when a task ended, and what its last attempt came to.
-- Returns: one row: state is solved, failed or cancelled.
-- Locks: none.
-- Why: a part of why(). An owner may end a task by plain SQL, so there need be no attempt and no finished_at.
create or replace function llmqueue_internal.why_ended(
    p_task_id llmqueue.task_id, out state text, out reason text, out model text, out detail jsonb)
language plpgsql stable set jit = off set enable_seqscan = off set enable_bitmapscan = off as $$
declare
    v_task record;
    v_last record;
begin
    select t.lane, t.is_failed, t.finished_at, t.error::text as error, t.attempts,
           coalesce(t.status = llmqueue_internal.status_word('cancelled'), false) as is_cancelled
      into strict v_task from llmqueue.task t where t.id = p_task_id;
    select a.model, a.outcome, a.error_class, a.error into v_last
      from llmqueue.attempt a where a.task_id = p_task_id order by a.fence desc limit 1;
    state := case when v_task.is_failed then 'failed' when v_task.is_cancelled then 'cancelled' else 'solved' end;
    reason := 'ended';
    model := coalesce(v_last.model, nullif(v_task.lane, ''));
    detail := jsonb_strip_nulls(jsonb_build_object(
        'ended_at', v_task.finished_at, 'error', v_task.error, 'attempts', v_task.attempts,
        'last_outcome', v_last.outcome, 'last_error_class', v_last.error_class, 'last_error', v_last.error));
end
$$;
