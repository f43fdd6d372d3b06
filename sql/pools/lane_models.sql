-- What it does: names the models that take tasks of a lane.
-- Returns: for '' the enabled models with a weight; else the model or the pool's members of that name, configured or
--   not; an unknown name stands for itself. At most 1,000.
-- Locks: none.
-- Why: a task of a pool is bound late: it goes to whichever of these models has capacity.
create or replace function llmqueue_internal.lane_models(p_lane text)
returns text[] language sql stable as $$
    select coalesce(array_agg(m.model order by m.model), case when p_lane = '' then '{}' else array[p_lane] end)
      from (select c.model from llmqueue.model_config c where p_lane = '' and c.enabled and c.weight > 0
            union
            select c.model from llmqueue.model_config c where c.model = p_lane
            union
            select p.model from llmqueue.pool_member p where p.pool = p_lane
            limit 1000) m
$$;
