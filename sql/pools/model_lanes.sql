-- What it does: names the lanes that a model takes tasks from.
-- Returns: its own name, its pools (at most 1,000), and '' if it has a weight in the default pool.
-- Locks: none.
-- Why: the other side of lane_models().
create or replace function llmqueue_internal.model_lanes(p_model text)
returns text[] language sql stable as $$
    select array_agg(l.lane order by l.lane)
      from (select p_model as lane
            union
            select p.pool from llmqueue.pool_member p where p.model = p_model
            union
            select '' from llmqueue.model_config c where c.model = p_model and c.weight > 0
            limit 1000) l
$$;
