-- What it does: says whether a lane has another model that is neither paused nor closed.
-- Returns: true or false.
-- Locks: none.
-- Why: what one model of a pool refuses, the others take at once (I15).
create or replace function llmqueue_internal.has_other_member(p_lane text, p_model text)
returns boolean language plpgsql stable as $$
begin
    return exists (
        select from llmqueue.model_config c
         where c.model <> p_model and llmqueue_internal.is_enabled(c)
           and ((p_lane = '' and c.weight > 0) or c.model = p_lane
                or exists (select from llmqueue.pool_member m where m.pool = p_lane and m.model = c.model))
           and not exists (select from llmqueue.model_state s where s.model = c.model and s.cooldown_until is not null));
end
$$;
