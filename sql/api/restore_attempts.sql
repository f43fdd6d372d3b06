-- What it does: restores the attempts of failures that turned out to be the backend's; a task that was buried for them
--   waits again.
-- Returns: the fences that must be passed again later: their end is not written yet, or another transaction holds the
--   row.
-- Locks: task rows, SKIP LOCKED, then attempt rows.
-- Why: the failures that open a worker's circuit breaker were counted before it was known what they mean (I11). The
--   attempt becomes 'refused', as if that had been known; its call stays charged. A task that was restarted by hand
--   counts from 1 again, so there is nothing to restore: its finished_at says so until it is claimed.
create or replace function llmqueue.restore_attempts(p_worker uuid, p_fences bigint[])
returns bigint[] language plpgsql volatile
security definer set search_path = pg_catalog, pg_temp
set jit = off set plan_cache_mode = force_generic_plan
set enable_seqscan = off set enable_hashjoin = off set enable_mergejoin = off as $$
declare
    v_now constant timestamptz := llmqueue_internal.clock();
    v_fence bigint;
    v_attempt record;
    v_later bigint[] := array[]::bigint[];
begin
    perform set_config('search_path', llmqueue_internal.owners_path(), true);   -- until this function ends
    if current_setting('synchronous_commit') in ('off', 'local') then
        perform set_config('synchronous_commit', 'on', true);
    end if;
    set constraints all immediate;   -- as in settle()
    -- the attempt that buried a task comes first
    for v_fence in select f.fence from unnest(p_fences) f(fence) order by f.fence desc loop
        select a.task_id, a.outcome into v_attempt
          from llmqueue.attempt a
         where a.fence = v_fence and a.worker = p_worker
           and (a.outcome is null or a.outcome in ('retried', 'buried'));
        continue when not found;
        perform from llmqueue.task t where t.id = v_attempt.task_id for no key update of t skip locked;
        if v_attempt.outcome is null
           or (not found and exists (select from llmqueue.task t where t.id = v_attempt.task_id)) then
            v_later := v_later || v_fence;
            continue;
        end if;
        begin
            update llmqueue.task t
               set attempts = t.attempts - 1,
                   status = case when t.is_failed then llmqueue_internal.status_word('delayed') else t.status end,
                   run_at = case when t.is_failed then v_now + make_interval(secs => 0.5 + random() / 2)
                                 else t.run_at end,
                   finished_at = null
             where t.id = v_attempt.task_id and t.attempts > 0
               and case when t.is_failed then t.fence = v_fence and v_attempt.outcome = 'buried'
                        else t.finished_at is null and t.fence >= v_fence end
               -- complete() knows a later attempt, whose answer may still arrive, by its number
               and not exists (select from llmqueue.attempt a
                                where a.task_id = v_attempt.task_id and a.fence > v_fence
                                  and a.outcome = 'lost');
            update llmqueue.attempt a set outcome = 'refused' where a.fence = v_fence;
        exception when others then
            if not llmqueue_internal.is_row_fault(sqlstate, true) then
                raise;
            end if;   -- a trigger of the owner refuses: the attempt stays counted
        end;
    end loop;
    return v_later;
end
$$;
comment on function llmqueue.restore_attempts is
    'Restores attempts whose failure turned out to be the fault of the backend. For workers.';
