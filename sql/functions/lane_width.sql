-- What it does: says how many models that may be given tasks take them from a lane.
-- Returns: at least 1.
-- Locks: none.
-- Why: the tasks of a wide lane can go elsewhere too, so a model that also takes from a narrow one owes it fewer turns.
create or replace function llmqueue.lane_width(p_lane text)
returns bigint language plpgsql stable
set jit = off set plan_cache_mode = force_generic_plan set enable_seqscan = off set enable_bitmapscan = off as $$
begin
    if p_lane = '' then
        return greatest(1, (select count(*) from llmqueue.model_config c where c.weight > 0 and llmqueue.is_able(c)));
    end if;
    return greatest(1, (select count(*) from llmqueue.pool_member p
                         where p.pool = p_lane and p.model <> p_lane
                           and (select llmqueue.is_able(c) from llmqueue.model_config c where c.model = p.model))
                       + (select count(*) from llmqueue.model_config c where c.model = p_lane and llmqueue.is_able(c)));
end
$$;
