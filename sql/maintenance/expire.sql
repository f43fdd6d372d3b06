-- What it does: ends up to p_limit waiting tasks whose deadline_at has passed, ready or delayed.
-- Returns: how many tasks were found; fail_unsent() ends or quarantines each.
-- Locks: the task rows, FOR NO KEY UPDATE SKIP LOCKED.
-- Why: a claim notices a passed deadline only when the task's turn comes, which a cooldown or a pause of its model puts
--   off for hours (OmniRoute #495). Tasks without a deadline are not in the index that this reads. A bitmap
--   scan would read and sort all tasks that are late.
create or replace function llmqueue_internal.expire(p_limit integer)
returns integer language plpgsql volatile set enable_bitmapscan = off set jit = off as $$
declare
    v_now constant timestamptz := llmqueue_internal.clock();
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
