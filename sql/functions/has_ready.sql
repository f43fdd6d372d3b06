-- What it does: looks whether a lane has a ready task that is due, or a hot one, without locking anything.
-- Returns: true or false; hot tasks whose run_at is ahead count, and so may tasks that are set aside.
-- Locks: none.
-- Why: an empty lane should not cost the model's lock.
create or replace function llmqueue.has_ready(p_lane text, p_is_hot boolean default false, p_now timestamptz default null)
returns boolean language plpgsql stable
set jit = off set plan_cache_mode = force_generic_plan set enable_seqscan = off set enable_bitmapscan = off set enable_sort = off as $$
begin
    if p_is_hot then
        return exists (select from llmqueue.task t where t.is_ready and t.lane = p_lane and t.rank >= 100);
    end if;
    return coalesce((select t.waiting_since <= coalesce(p_now, clock_timestamp())
                       from llmqueue.task t where t.is_ready and t.lane = p_lane order by t.waiting_since limit 1), false);
end
$$;
