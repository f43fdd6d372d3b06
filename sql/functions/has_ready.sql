-- What it does: looks whether a lane has a ready task, or a hot one, without locking anything.
-- Returns: true or false; tasks whose run_at is ahead count, tasks set aside at the head may.
-- Locks: none.
-- Why: an empty lane should not cost the model's lock.
create or replace function llmqueue.has_ready(p_lane text, p_is_hot boolean default false)
returns boolean language plpgsql stable set jit = off set plan_cache_mode = force_generic_plan set enable_seqscan = off set enable_bitmapscan = off as $$
begin
    if p_is_hot then
        return exists (select from llmqueue.task t where t.is_ready and t.lane = p_lane and t.rank >= 100);
    end if;
    return exists (select from llmqueue.task t where t.is_ready and t.lane = p_lane);
end
$$;
