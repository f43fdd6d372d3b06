-- What it does: says what a task would be charged by a budget's model, as a claim would.
-- Returns: a charged task; tokens is null when the model has no limit on tokens.
-- Locks: none.
-- Why: for `why`; the charge of an earlier attempt at this model counts, as in admit().
create or replace function llmqueue_internal.charge_of_task(
    p_budget llmqueue_internal.budget, p_task_id llmqueue.task_id)
returns llmqueue_internal.charged_task language plpgsql stable
set jit = off set enable_seqscan = off set enable_bitmapscan = off as $$
declare
    v_task record;
    v_charge llmqueue_internal.charged_task;
begin
    if p_budget.bytes_ratio is not null then
        select octet_length(t.prompt_text) as bytes, llmqueue_internal.max_output_of(t.params::text) as max_output,
               t.fence
          into strict v_task from llmqueue.task t where t.id = p_task_id;
        v_charge := llmqueue_internal.estimate_charge(p_budget, v_task.bytes, v_task.max_output,
            (select a.input_charge from llmqueue.attempt a where a.fence = v_task.fence and a.model = p_budget.model));
    end if;
    return v_charge;
end
$$;
