-- What it does: records which attempt is the probe of a model in cooldown.
-- Returns: nothing.
-- Locks: the model's row of model_state; the caller holds the model's advisory lock.
-- Why: the end of that attempt, and of no earlier probe, ends the cooldown (complete, retry, bury) or starts it again
--   (start_cooldowns).
create or replace function llmqueue_internal.note_probe(p_model text, p_fence bigint)
returns void language plpgsql volatile as $$
begin
    update llmqueue.model_state s set probe_fence = p_fence where s.model = p_model;
    update llmqueue.attempt a set is_probe = true where a.fence = p_fence;
end
$$;
