-- What it does: remembers which attempt tries whether a closed model answers again.
-- Returns: nothing.
-- Locks: the model's row of model_state; the caller holds the model's advisory lock.
-- Why: its end opens the model or closes it again.
create or replace function llmqueue_internal.note_probe(p_model text, p_fence bigint)
returns void language plpgsql volatile as $$
begin
    update llmqueue.model_state s set probe_fence = p_fence where s.model = p_model;
    update llmqueue.attempt a set is_probe = true where a.fence = p_fence;
end
$$;
