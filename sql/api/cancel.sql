-- What it does: ends tasks as cancelled; the answer of one that is running is kept in the attempt log when it comes.
-- Returns: the keys of those that were cancelled; ended ones are left alone.
-- Locks: their rows, in the order of their keys: two of these meet in the same order.
-- Why: an operator's word. The call that may be under way is not taken back, and stays charged.
create or replace function llmqueue.cancel(p_task_ids llmqueue.task_id[])
returns setof llmqueue.task_id language plpgsql volatile
security definer set search_path = pg_catalog, pg_temp set jit = off set plan_cache_mode = force_generic_plan set enable_seqscan = off set enable_hashjoin = off set enable_mergejoin = off as $$
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
    'Ends tasks as cancelled; returns the keys of those that were not ended yet.';
