-- What it does: says whether it is a task, rather than its model, that gets refusals.
-- Returns: true if it was refused three times and the model, open now, has taken a probe since the third.
-- Locks: none.
-- Why: one poisoned task must not close a model for all others, time and again.
create or replace function llmqueue_internal.is_poison_task(p_task_id llmqueue.task_id, p_model text)
returns boolean language plpgsql stable set jit = off set plan_cache_mode = force_generic_plan set enable_seqscan = off set enable_bitmapscan = off as $$
begin
    return llmqueue_internal.count_refusals(p_task_id, 3) >= 3 and coalesce(
        (select s.cooldown_until is null
                and s.cooldown_ended_at > (select r.ended_at from llmqueue.attempt r
                                      where r.task_id = p_task_id and r.model = p_model and r.outcome = 'refused'
                                      order by r.fence offset 2 limit 1)
           from llmqueue.model_state s where s.model = p_model), false);
end
$$;
