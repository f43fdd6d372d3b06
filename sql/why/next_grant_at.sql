-- What it does: says when a model may be given a call of so many tokens, and what that is waiting for; for `why`.
-- Returns: one row: reason null and at = now when it may be given now; see when_free().
-- Locks: none: the answer is a look, not a promise.
-- Why: the same functions as a claim, without its lock.
create or replace function llmqueue_internal.next_grant_at(
    p_model text, p_is_hot boolean, p_tokens bigint, p_output_tokens bigint, p_now timestamptz,
    out reason text, out at timestamptz)
language plpgsql stable as $$
declare
    v_config llmqueue.model_config;
begin
    select c.* into v_config from llmqueue.model_config c where c.model = p_model;
    if not found or v_config.rpm = 0 then
        return;
    end if;
    select w.reason, w.retry_at into reason, at
      from llmqueue_internal.when_free(llmqueue_internal.headroom(v_config, p_now), p_is_hot, 1, p_tokens, p_output_tokens) w;
end
$$;
