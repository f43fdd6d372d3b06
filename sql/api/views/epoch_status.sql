-- The current epoch: since when, why it began, and until when nothing is granted.
create view llmqueue.epoch_status as
select e.epoch_no,
       e.because,
       e.began_at,
       e.quiet_until,
       e.system_identifier,
       e.timeline
  from llmqueue.epoch e
 order by e.epoch_no desc
 limit 1;
comment on view llmqueue.epoch_status is
    'The current epoch. A failover or a restore that may have lost grants begins a new one, with a quiet minute.';
