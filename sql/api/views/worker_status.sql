-- Each worker that is registered; a dead one stays until another has swept its tasks. backend_trouble is what keeps
-- it from calling the backend.
create view llmqueue.worker_status as
select w.worker,
       w.name,
       w.version,
       case when w.heartbeat_at <= beat.now - make_interval(secs => w.lease_s) then 'dead'
            when w.is_draining then 'draining'
            when w.running > 0 then 'working'
            else 'idle' end as state,
       w.running,
       round(extract(epoch from beat.now - w.heartbeat_at), 1) as heartbeat_age_s,
       w.started_at,
       w.backend_trouble,
       w.backend_troubled_at
  from llmqueue.worker w
 cross join (select llmqueue_internal.clock() as now) beat;
comment on view llmqueue.worker_status is
    'Workers: working, idle, draining or dead (no heartbeat for longer than the lease).';
