-- What it does: says whether a model may be given tasks at all, as far as its row of model_config is concerned.
-- Returns: false while it is paused: disabled, or one of its limits is 0.
-- Locks: none.
-- Why: one meaning of "paused" for claims, drain_state() and the views. A model in cooldown, or one that has used up
--   its minute or its day, is enabled: that ends by itself.
create or replace function llmqueue_internal.is_enabled(p_config llmqueue.model_config)
returns boolean language sql immutable parallel safe as $$
    select p_config.enabled
       and least(p_config.rpm, p_config.tpm, p_config.output_tpm, p_config.rpd, p_config.tpd,
                 p_config.max_concurrency) > 0
$$;
