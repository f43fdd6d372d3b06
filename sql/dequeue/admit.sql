-- What it does: goes through locked tasks in their order and says which of them fit into a budget.
-- Returns: one row: candidates with their charge; unfit: tasks that never fit this model but fit another of the pool;
--   is_blocked and what the next task needs, if it does not fit now; users: 'rank lane' -> the user served last there
--   (empty for the pass by age, p_rank null); ended: how many tasks became dead letters.
-- Locks: none; a task past its deadline, or too large for every model that could take it, is ended here.
-- Why: a charge above the limit would wait for ever: dead letter at once, with the numbers (I5). The bucket of tokens
--   may run into debt, so that a prompt larger than it is admitted while its level is above 0. A task that needs more
--   than what the reserve for hot tasks leaves is let into the reserve, else it would never run.
create or replace function llmqueue_internal.admit(
    p_budget llmqueue_internal.budget, p_batch llmqueue_internal.batch, p_rank bigint,
    p_picked llmqueue_internal.locked_task[], p_now timestamptz,
    out candidates llmqueue_internal.charged_task[], out unfit llmqueue.task_id[], out users jsonb,
    out is_blocked boolean, out next_tokens bigint, out next_output_tokens bigint, out next_is_hot boolean,
    out ended integer)
language plpgsql volatile as $$
declare
    v_config llmqueue.model_config := p_budget.configured;
    v_picked llmqueue_internal.locked_task;
    v_last llmqueue_internal.locked_task;   -- that was taken
    v_charge llmqueue_internal.charged_task;
    v_tokens bigint := p_batch.tokens;
    v_output bigint := p_batch.output_tokens;
    v_error text;
begin
    candidates := '{}';
    unfit := '{}';
    ended := 0;
    users := '{}';
    is_blocked := false;
    foreach v_picked in array p_picked loop
        if v_picked.is_expired then
            perform llmqueue_internal.fail_unsent(array[v_picked.task_id], 'expired: deadline_at has passed', p_now);
            ended := ended + 1;
            continue;
        end if;
        if p_budget.bytes_ratio is null then
            v_charge := null;
        else
            v_charge := llmqueue_internal.estimate_charge(p_budget, v_picked.bytes, v_picked.max_output,
                (select a.input_charge from llmqueue.attempt a
                 where a.fence = v_picked.last_fence and a.model = p_budget.model));
            v_error := llmqueue_internal.oversize_error(v_config, v_charge);
            if v_error is not null then
                if llmqueue_internal.fits_elsewhere(v_picked, p_budget.model) then
                    unfit := unfit || v_picked.task_id;
                else
                    perform llmqueue_internal.fail_unsent(array[v_picked.task_id], v_error, p_now);
                    ended := ended + 1;
                end if;
                continue;
            end if;
            next_is_hot := v_picked.is_hot;
            next_tokens := v_charge.tokens;
            next_output_tokens := v_charge.output_tokens;
            is_blocked := v_output + v_charge.output_tokens > p_budget.output_free
                or v_tokens + v_charge.tokens > case
                    when v_picked.is_hot or v_charge.tokens > v_config.tpm - p_budget.token_reserve
                                                     then p_budget.hot_tokens else p_budget.tokens end
                or v_tokens + v_output + v_charge.tokens + v_charge.output_tokens > p_budget.day_tokens
                -- hot tasks do not wait for the pace: windows and reserve are enough
                or (p_budget.token_level - v_tokens <= 0 and not v_picked.is_hot);
            exit when is_blocked;
            v_tokens := v_tokens + v_charge.tokens;
            v_output := v_output + v_charge.output_tokens;
        end if;
        v_charge.task_id := v_picked.task_id;
        v_charge.lane := v_picked.lane;
        v_charge.is_hot := v_picked.is_hot;
        candidates := candidates || v_charge;
        if p_rank is not null
           and (v_last.lane is distinct from v_picked.lane or v_last.user_key is distinct from v_picked.user_key) then
            users := users || jsonb_build_object(p_rank || ' ' || v_picked.lane, v_picked.user_key);
        end if;
        v_last := v_picked;
    end loop;
    is_blocked := coalesce(is_blocked, false);
end
$$;
