-- What it does: opens the model whose probe has been answered.
-- Returns: nothing.
-- Locks: the model's row of model_state.
-- Why: only the probe that is under way says that a model is back: one from before a later refusal does not.
create or replace function llmqueue_internal.probe_answered(p_fence bigint)
returns void language plpgsql volatile as $$
begin
    perform llmqueue.end_cooldown(s.model) from llmqueue.model_state s where s.probe_fence = p_fence;
end
$$;
