-- What it does: closes the models that refused attempts of a settle, or failed the call that tried whether they are back.
-- Returns: {fence: seconds until its model reopens}, for each attempt that was refused.
-- Locks: rows of model_state, in the order of the models' names.
-- Why: a task that is refused again and again while others of the same model are answered is what is wrong, not the model: it
--   waits by itself, and closes the model for nobody (design I13).
create or replace function llmqueue_internal.start_cooldowns(p_worker uuid, p_items jsonb, p_now timestamptz)
returns jsonb language plpgsql volatile
set jit = off set plan_cache_mode = force_generic_plan set enable_seqscan = off set enable_hashjoin = off set enable_mergejoin = off as $$
declare
    v_item record;
    v_until timestamptz;
    v_reopens jsonb := '{}'::jsonb;
begin
    for v_item in
        select i.fence, i.task_id, i.refusal, i.pause_s, i.error_class, i.error, a.model, a.granted_at, a.lane, a.is_probe
          from jsonb_to_recordset(p_items) as i(
                   fence bigint, task_id llmqueue.task_id, refusal text, pause_s double precision, error_class text, error text,
                   counts boolean, may_be_backends boolean)
         cross join lateral (select a.model, a.granted_at, a.lane, a.is_probe from llmqueue.attempt a
                              where a.fence = i.fence and a.worker = p_worker and a.task_id = i.task_id
                                and a.outcome is null limit 1) a
         where i.refusal is not null or (a.is_probe and i.counts and i.may_be_backends)
         order by a.model, a.granted_at
    loop
        if llmqueue_internal.is_poison_task(v_item.task_id, v_item.model) then
            v_until := p_now + make_interval(secs => least(greatest(coalesce(v_item.pause_s, 5), 0), 86400));
        else
            -- a refused probe says that it is still so, not that the ceiling is still too high
            v_until := llmqueue_internal.start_cooldown(v_item.model, case when not v_item.is_probe then v_item.refusal end, v_item.pause_s,
                                            v_item.error_class || ': ' || v_item.error, v_item.granted_at, p_now);
            if v_item.lane <> v_item.model and llmqueue_internal.has_other_member(v_item.lane, v_item.model) then
                v_until := p_now;   -- another model of the pool takes it at once
            end if;
        end if;
        v_reopens := v_reopens || jsonb_build_object(v_item.fence::text, extract(epoch from v_until - p_now));
    end loop;
    return v_reopens;
end
$$;
