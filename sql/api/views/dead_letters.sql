-- The 10,000 tasks that failed last, and as many in quarantine: their row could not be written (error_class
-- 'quarantined').
create view llmqueue.dead_letters as
select failed.id::llmqueue.task_id as task_id,
       coalesce(nullif(failed.lane, ''), last.model) as model,
       failed.attempts::integer as attempts,
       last.error_class,
       failed.error::text as error,
       failed.finished_at as failed_at
  from (select t.id, t.lane, t.attempts, t.error, t.finished_at
          from llmqueue.task t where t.is_failed order by t.finished_at desc limit 10000) failed
  left join lateral (select a.model, a.error_class from llmqueue.attempt a
                      where a.task_id = failed.id order by a.fence desc limit 1) last on true
union all
select q.task_id,
       coalesce(nullif(t.lane, ''), last.model),
       t.attempts::integer,
       'quarantined',
       q.step || ': ' || q.reason,
       q.quarantined_at
  from (select s.task_id, s.step, s.reason, s.quarantined_at
          from llmqueue.quarantine s order by s.quarantined_at desc limit 10000) q
  left join llmqueue.task t on t.id = q.task_id
  left join lateral (select a.model from llmqueue.attempt a
                      where a.task_id = q.task_id order by a.fence desc limit 1) last on true;
comment on view llmqueue.dead_letters is
    'Tasks that failed, and tasks in quarantine because their row could not be written; the newest 10,000 of each.';
