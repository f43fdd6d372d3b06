-- What it does: says how many more tasks may be taken under a budget, hot ones or others.
-- Returns: the least of what the model and the worker's slots allow, what its lanes may still give, after what was taken already.
-- Locks: none.
-- Why: hot tasks use the slots and grants kept for them first, and all others after.
create or replace function llmqueue.calls_left(p_budget llmqueue.budget, p_taking llmqueue.taking, p_is_hot boolean)
returns integer language plpgsql immutable parallel safe as $$
declare
    v_most integer;
    v_sum bigint := 0::bigint;   -- of what the lanes may still give
begin
    foreach v_most in array p_taking.most loop
        v_sum := v_sum + v_most;
    end loop;
    if p_is_hot then
        return least(p_budget.hot_calls - p_taking.calls, v_sum, p_taking.slots + p_taking.hot_slots - p_taking.calls)::integer;
    end if;
    return least(p_budget.calls - (p_taking.calls - p_taking.hot_calls), p_budget.hot_calls - p_taking.calls, v_sum,
                 p_taking.slots - (p_taking.calls - p_taking.hot_calls) - greatest(0, p_taking.hot_calls - p_taking.hot_slots))::integer;
end
$$;
