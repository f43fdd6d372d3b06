-- What it does: says how many more tasks may be taken under a budget, hot ones or others.
-- Returns: the least of what the model, the worker's slots and the lanes still allow after what was taken.
-- Locks: none.
-- Why: hot tasks use the slots and grants kept for them first, and all others after.
create or replace function llmqueue_internal.calls_left(
    p_budget llmqueue_internal.budget, p_batch llmqueue_internal.batch, p_is_hot boolean)
returns integer language plpgsql immutable parallel safe as $$
declare
    v_most integer;
    v_sum bigint := 0::bigint;   -- of what the lanes may still give
begin
    foreach v_most in array p_batch.most loop
        v_sum := v_sum + v_most;
    end loop;
    if p_is_hot then
        return least(p_budget.hot_calls - p_batch.calls, v_sum,
                     p_batch.slots + p_batch.hot_slots - p_batch.calls)::integer;
    end if;
    return least(p_budget.calls - (p_batch.calls - p_batch.hot_calls), p_budget.hot_calls - p_batch.calls, v_sum,
                 p_batch.slots - (p_batch.calls - p_batch.hot_calls)
                 - greatest(0, p_batch.hot_calls - p_batch.hot_slots))::integer;
end
$$;
