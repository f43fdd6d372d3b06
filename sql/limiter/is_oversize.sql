-- What it does: says whether a charge is above a limit of a model, so that it could never be granted.
-- Returns: true or false.
-- Locks: none.
-- Why: tokens of a window, of the day, and with split those of the output.
create or replace function llmqueue_internal.is_oversize(p_config llmqueue.model_config, p_charge llmqueue_internal.charged_task)
returns boolean language sql immutable parallel safe as $$
    select coalesce(p_charge.tokens > p_config.tpm, false) or coalesce(p_charge.output_tokens > p_config.output_tpm, false)
        or coalesce(p_charge.tokens + p_charge.output_tokens > p_config.tpd, false)
$$;
