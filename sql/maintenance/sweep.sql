-- What it does: makes up to p_limit tasks of dead workers ready again; tasks out of attempts become dead letters, and
--   so do all tasks of a model whose on_crash is 'park'. Removes workers that are dead and have no open attempt.
-- Returns: how many tasks were swept.
-- Locks: attempt rows, then their task rows, both SKIP LOCKED: it runs inside a claim and must not wait.
-- Why: after an outage every heartbeat is old, and nobody is dead (I9). So a worker sweeps only after its own
--   heartbeats have arrived for a whole lease, and never within a lease of the server's start or of a new epoch (a
--   promoted standby started long ago). Its own last heartbeat must be younger than half a lease: a clock that jumps
--   ahead makes all of them old at once. A heartbeat more than a lease ahead is from before a step back of the clock:
--   a live worker has sent one since.
--   What a dead worker had sent counts as spent. Its late answers are accepted: the attempt ends as 'lost', which
--   complete() accepts.
--   A parked task is a dead letter, 'outcome_unknown': its call may have been paid, and people who pay per call want
--   to be asked before it is made again. Its late answer is accepted too.
create or replace function llmqueue_internal.sweep(p_worker uuid, p_limit integer)
returns integer language plpgsql volatile as $$
declare
    v_max_attempts constant integer := 5;   -- of a task that names none
    v_now constant timestamptz := llmqueue_internal.clock();
    v_lost record;
    v_swept integer := 0;
begin
    if not exists (select from llmqueue.worker w
                    where w.worker = p_worker and w.beating_since <= v_now - make_interval(secs => w.lease_s)
                      and abs(extract(epoch from v_now - w.heartbeat_at)) < w.lease_s / 2
                      and pg_postmaster_start_time() <= v_now - make_interval(secs => w.lease_s)
                      and not exists (select from llmqueue.epoch e
                                       where e.began_at > v_now - make_interval(secs => w.lease_s))) then
        return 0;
    end if;
    for v_lost in
        select a.fence, a.task_id, coalesce((select c.on_crash = 'park' from llmqueue.model_config c
                                              where c.model = a.model), false) as is_parked
          from llmqueue.attempt a
         where a.ended_at is null
           and not exists (select from llmqueue.worker w
                            where w.worker = a.worker and abs(extract(epoch from v_now - w.heartbeat_at)) < w.lease_s)
         order by a.task_id limit p_limit for no key update of a skip locked
    loop
        perform from llmqueue.task t where t.id = v_lost.task_id for no key update of t skip locked;
        if not found and exists (select from llmqueue.task t where t.id = v_lost.task_id) then
            continue;   -- another transaction holds the row: the next sweep
        end if;
        begin
            update llmqueue.task t
               set status = llmqueue_internal.status_word(
                       case when v_lost.is_parked or t.attempts >= coalesce(t.max_attempts, v_max_attempts)
                            then 'failed' else 'unsolved' end),
                   finished_at = case when v_lost.is_parked or t.attempts >= coalesce(t.max_attempts, v_max_attempts)
                                      then v_now end,
                   error = case when v_lost.is_parked
                                then 'outcome_unknown: the worker that ran it is gone, and it may have sent the call'
                                else 'lost: the worker that ran it is gone' end,
                   run_at = v_now
             where t.id = v_lost.task_id and t.is_running and t.fence = v_lost.fence;
            update llmqueue.attempt a
               set ended_at = v_now, outcome = 'lost',
                   error_class = case when v_lost.is_parked then 'outcome_unknown' end
             where a.fence = v_lost.fence;
            v_swept := v_swept + 1;
        exception when others then
            if not llmqueue_internal.is_row_fault(sqlstate, true) then
                raise;
            end if;
            perform llmqueue_internal.quarantine(v_lost.task_id, 'sweep', sqlerrm);
            update llmqueue.attempt a
               set ended_at = v_now, outcome = 'quarantined', error_class = sqlstate, error = left(sqlerrm, 2000)
             where a.fence = v_lost.fence;
        end;
    end loop;
    -- another sweep may hold these rows too: not waited for
    delete from llmqueue.worker w
     where w.worker in (select gone.worker from llmqueue.worker gone
                         where abs(extract(epoch from v_now - gone.heartbeat_at)) >= gone.lease_s
                           and not exists (select from llmqueue.attempt a
                                            where a.worker = gone.worker and a.ended_at is null)
                           for update of gone skip locked);
    delete from llmqueue.idle_worker i
     where i.worker in (select idle.worker from llmqueue.idle_worker idle
                         where not exists (select from llmqueue.worker w where w.worker = idle.worker)
                           for update of idle skip locked);
    return v_swept;
end
$$;
