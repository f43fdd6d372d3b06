-- What it does: starts the cooldowns of the models that refused attempts of a settle, or that failed their probe.
-- Returns: {fence: seconds until the cooldown of its model ends}, for each attempt that was refused.
-- Locks: rows of model_state, in the order of the models' names.
-- Why: a task that was refused three times since it last ended, while its model has ended a cooldown after the third
--   refusal, is a poison task: the task is at fault, not the model. It waits alone and starts no cooldown, so that it
--   cannot hold up a model for all others (I13). A task of a pool is ready at once while another model of the pool is
--   neither paused nor in cooldown (I15).
create or replace function llmqueue_internal.start_cooldowns(p_worker uuid, p_items jsonb, p_now timestamptz)
returns jsonb language plpgsql volatile as $$
declare
    v_poison constant integer := 3;   -- refusals
    v_day_s constant double precision := 86400::double precision;
    v_item record;
    v_until timestamptz;
    v_cooldowns jsonb := '{}'::jsonb;
begin
    for v_item in
        select i.fence, i.task_id, i.refusal, i.pause_s, i.error_class, i.error,
               a.model, a.granted_at, a.lane, a.is_probe
          from jsonb_to_recordset(p_items) as i(
                   fence bigint, task_id llmqueue.task_id, refusal text, pause_s double precision, error_class text,
                   error text, counts boolean, may_be_backends boolean)
         cross join lateral (select a.model, a.granted_at, a.lane, a.is_probe from llmqueue.attempt a
                              where a.fence = i.fence and a.worker = p_worker and a.task_id = i.task_id
                                and a.outcome is null limit 1) a
         where i.refusal is not null or (a.is_probe and i.counts and i.may_be_backends)
         order by a.model, a.granted_at
    loop
        if llmqueue_internal.count_refusals(v_item.task_id, v_poison) >= v_poison
           and (select s.cooldown_until is null
                       and s.cooldown_ended_at > (select r.ended_at from llmqueue.attempt r
                                                   where r.task_id = v_item.task_id and r.model = v_item.model
                                                     and r.outcome = 'refused'
                                                   order by r.fence offset v_poison - 1 limit 1)
                  from llmqueue.model_state s where s.model = v_item.model) then
            v_until := p_now + make_interval(secs => least(greatest(coalesce(v_item.pause_s, 5), 0), v_day_s));
        else
            -- a refused probe says that the model still refuses, not that the ceiling is still too high
            v_until := llmqueue_internal.start_cooldown(
                v_item.model, case when not v_item.is_probe then v_item.refusal end, v_item.pause_s,
                v_item.error_class || ': ' || v_item.error, v_item.granted_at, p_now);
            if v_item.lane <> v_item.model and exists (
                   select from llmqueue.model_config c
                    where c.model <> v_item.model and llmqueue_internal.is_enabled(c)
                      and ((v_item.lane = '' and c.weight > 0) or c.model = v_item.lane
                           or exists (select from llmqueue.pool_member m
                                       where m.pool = v_item.lane and m.model = c.model))
                      and not exists (select from llmqueue.model_state s
                                       where s.model = c.model and s.cooldown_until is not null)) then
                v_until := p_now;
            end if;
        end if;
        v_cooldowns := v_cooldowns || jsonb_build_object(v_item.fence::text, extract(epoch from v_until - p_now));
    end loop;
    return v_cooldowns;
end
$$;
