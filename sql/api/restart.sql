-- What it does: makes ended or quarantined tasks ready again, with attempts counted anew, and ends their quarantine.
-- Returns: the keys of the tasks that will run again.
-- Locks: their rows, in the order of their keys, so that two calls do not deadlock.
-- Why: the same as setting the status by plain SQL (I18), for `tasks retry` and `dead retry`. finished_at stays, which
--   tells the next claim that this is a new start.
create or replace function llmqueue.restart(p_task_ids llmqueue.task_id[])
returns setof llmqueue.task_id language plpgsql volatile
security definer set search_path = pg_catalog, pg_temp
set jit = off set plan_cache_mode = force_generic_plan
set enable_seqscan = off set enable_hashjoin = off set enable_mergejoin = off as $$
begin
    perform set_config('search_path', llmqueue_internal.owners_path(), true);   -- until this function ends
    perform llmqueue_internal.mark_queued(p_task_ids);
    return query
        update llmqueue.task t
           set status = llmqueue_internal.status_word('unsolved'), run_at = llmqueue_internal.clock(),
               finished_at = coalesce(t.finished_at, llmqueue_internal.clock())
          from (select given.id from unnest(p_task_ids) given(id) order by given.id) picked
         where t.id = picked.id
           and (t.is_ended or t.is_delayed
                or (t.is_running and not exists (select from llmqueue.attempt a
                                           where a.fence = t.fence and a.ended_at is null)))
        returning t.id::llmqueue.task_id;
    delete from llmqueue.quarantine s where s.task_id = any (p_task_ids);   -- after the rows, in the order of settle()
    perform pg_notify('llmqueue', 'task');
end
$$;
comment on function llmqueue.restart is
    'Makes ended or quarantined tasks ready again, with attempts counted anew; returns their keys.';
