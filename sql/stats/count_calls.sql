-- What it does: sums the calls that a model was granted in the last minute.
-- Returns: calls, refunds taken off; 0 for a model that never ran.
-- Locks: none.
-- Why: count_60s() where only the calls are of interest.
create or replace function llmqueue_internal.count_calls(p_model text, p_now timestamptz)
returns bigint language sql stable as $$
    select used.calls from llmqueue_internal.count_60s(p_model, p_now) used
$$;
