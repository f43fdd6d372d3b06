-- What it does: ends an attempt whose end could not be written to its task, and quarantines the task.
-- Returns: nothing.
-- Locks: the attempt's row.
-- Why: the answer is paid for, so it stays in the attempt log (I12).
create or replace function llmqueue_internal.quarantine_attempt(
    p_worker uuid, p_item jsonb, p_error_class text, p_reason text, p_now timestamptz)
returns void language plpgsql volatile as $$
begin
    perform llmqueue_internal.quarantine((p_item ->> 'task_id')::llmqueue.task_id, p_item ->> 'verb', p_reason);
    update llmqueue.attempt a
       set ended_at = p_now, outcome = 'quarantined', error_class = p_error_class, error = left(p_reason, 2000),
           answer = p_item ->> 'answer'
     where a.fence = (p_item ->> 'fence')::bigint and a.worker = p_worker;
end
$$;
