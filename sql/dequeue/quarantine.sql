-- What it does: keeps a task whose UPDATE raises out of all claims, with the step and the reason.
-- Returns: nothing.
-- Locks: none.
-- Why: the task's row cannot be written, so the note stands beside it; `status` shows it, `dead retry` removes it.
create or replace function llmqueue_internal.quarantine(p_task_id llmqueue.task_id, p_step text, p_reason text)
returns void language sql volatile as $$
    insert into llmqueue.quarantine (task_id, step, reason) values (p_task_id, p_step, left(p_reason, 2000))
    on conflict (task_id) do update set step = excluded.step, reason = excluded.reason, quarantined_at = now()
$$;
