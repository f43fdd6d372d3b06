-- What it does: ends tasks as cancelled; when the answer of a running one arrives, it is kept in the attempt log.
-- Returns: the keys of the tasks that were cancelled; those that had ended are left alone.
-- Locks: their rows, in the order of their keys, so that two calls do not deadlock.
-- Why: an operator decides. A call that may be in flight is not cancelled at the backend, and stays charged.
create or replace function llmqueue.cancel(p_task_ids llmqueue.task_id[])
returns setof llmqueue.task_id language plpgsql volatile
security definer set search_path = pg_catalog, pg_temp
set jit = off set plan_cache_mode = force_generic_plan
set enable_seqscan = off set enable_hashjoin = off set enable_mergejoin = off as $$
begin
    perform set_config('search_path', llmqueue_internal.owners_path(), true);   -- until this function ends
    return query
        update llmqueue.task t
           set status = llmqueue_internal.status_word('cancelled'), finished_at = llmqueue_internal.clock()
          from (select given.id from unnest(p_task_ids) given(id) order by given.id) picked
         where t.id = picked.id and not t.is_ended
        returning t.id::llmqueue.task_id;
    delete from llmqueue.quarantine s where s.task_id = any (p_task_ids);   -- after the rows, in the order of settle()
end
$$;
comment on function llmqueue.cancel is
    'Ends tasks as cancelled; returns the keys of those that had not ended yet.';
