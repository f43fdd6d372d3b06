-- What it does: counts the models that take tasks from a lane now: neither paused nor in cooldown.
-- Returns: 1 to 100.
-- Locks: none.
-- Why: the tasks of a wide lane can go elsewhere too, so a model that also takes from a narrow one owes the wide one
--   fewer turns. Beyond a hundred it makes no difference, and the model's lock is held. Whether a worker serves these
--   models is not looked at.
create or replace function llmqueue_internal.lane_width(p_lane text)
returns bigint language plpgsql stable as $$
begin
    return greatest(1, (
        select count(*)
          from (select from (select c as configured from llmqueue.model_config c where p_lane = '' and c.weight > 0
                             union all
                             select c from llmqueue.model_config c where c.model = p_lane
                             union all
                             select c from llmqueue.pool_member p join llmqueue.model_config c on c.model = p.model
                              where p.pool = p_lane and p.model <> p_lane) m
                 where llmqueue_internal.is_enabled(m.configured)
                   and not exists (select from llmqueue.model_state s
                                   where s.model = (m.configured).model and s.cooldown_until is not null)
                 limit 100) able));
end
$$;
