-- Tasks that wait, run or have failed, by lane ('': the default pool) and status; exact up to 10,000 each.
create view llmqueue.backlog as
select b.model, b.status, b.tasks, b.is_estimate, b.oldest_at from llmqueue_internal.count_backlog() b;
comment on view llmqueue.backlog is
    'Tasks that wait, run or have failed, by lane and status; counts above 10,000 are estimates.';
