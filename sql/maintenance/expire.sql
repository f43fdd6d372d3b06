-- What it does: ends up to p_limit waiting tasks whose deadline_at has passed, ready or delayed, whatever their model does.
-- Returns: how many were looked at.
-- Locks: their rows, FOR NO KEY UPDATE SKIP LOCKED.
-- Why: a claim finds out only when a task's turn comes, which a closed or paused model puts off for hours (OmniRoute #495).
--   Any worker does it; rows without a deadline are not in the index that this reads.
create or replace function llmqueue_internal.expire(p_limit integer)
returns integer language plpgsql volatile
set jit = off set plan_cache_mode = force_generic_plan set enable_seqscan = off set enable_hashjoin = off set enable_mergejoin = off set enable_bitmapscan = off as $$
declare
    v_now timestamptz := llmqueue_internal.clock();
    v_ids llmqueue.task_id[];
begin
    v_ids := array(select late.id
                     from (select t.id from llmqueue.task t
                            where (t.is_ready or t.is_delayed) and t.deadline_at <= v_now
                              and (select true from llmqueue.quarantine s where s.task_id = t.id) is null
                            order by t.deadline_at limit p_limit for no key update of t skip locked) late);
    perform llmqueue_internal.fail_unsent(v_ids, 'expired: deadline_at has passed', v_now);
    return cardinality(v_ids);
end
$$;
