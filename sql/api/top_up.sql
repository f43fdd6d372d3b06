-- What it does: raises the charge of an attempt that was not sent yet, after the worker has looked at the prompt
--   itself.
-- Returns: true if the attempt is charged for p_input tokens now; false if the limits do not allow it, or the attempt
--   is not this worker's to send: the worker gives the task back.
-- Locks: the attempt's row; then the model's advisory lock, waited for 200 ms at the most.
-- Why: the estimate by bytes is too low for prompts of digits, code or Chinese. The difference is charged in the
--   current cell, before the first byte is sent. The attempt keeps p_input, so that the next claim of the task charges
--   it at once.
create or replace function llmqueue.top_up(
    p_worker uuid, p_fence bigint, p_input integer)
returns boolean language plpgsql volatile
security definer set search_path = pg_catalog, pg_temp set jit = off set plan_cache_mode = force_generic_plan as $$
declare
    v_attempt llmqueue.attempt;
    v_config llmqueue.model_config;
    v_budget llmqueue_internal.budget;
    v_more bigint;
begin
    if current_setting('transaction_isolation') <> 'read committed' then
        raise exception 'top_up needs READ COMMITTED, this transaction is %', current_setting('transaction_isolation')
            using errcode = 'LQ001';
    end if;
    if current_setting('synchronous_commit') in ('off', 'local') then
        perform set_config('synchronous_commit', 'on', true);
    end if;
    select a.* into v_attempt from llmqueue.attempt a
     where a.fence = p_fence and a.worker = p_worker and a.ended_at is null and a.top_up_cell is null
       and a.tokens is not null;
    if not found then
        return false;
    end if;
    v_more := case v_attempt.token_mode when 'max' then greatest(p_input, v_attempt.output_charge)
                                        when 'sum' then p_input::bigint + v_attempt.output_charge
                                        when 'actual' then p_input::bigint + v_attempt.output_charge
                                        else p_input end - v_attempt.tokens;
    if v_more <= 0 then
        return true;
    end if;
    perform llmqueue_internal.check_epoch(p_fence);
    update llmqueue.attempt a set input_charge = greatest(a.input_charge, p_input) where a.fence = p_fence;
    if not llmqueue_internal.lock_model(v_attempt.model, true) then
        return false;
    end if;
    select c.* into v_config from llmqueue.model_config c where c.model = v_attempt.model and c.enabled;
    if not found then
        return false;
    end if;
    v_budget := llmqueue_internal.headroom(v_config, llmqueue_internal.clock());
    if v_more > least(case when v_attempt.is_hot then v_budget.hot_tokens else v_budget.tokens
                      end, v_budget.day_tokens) then
        return false;
    end if;
    perform llmqueue_internal.charge(v_budget, 0, 0, v_more, 0, 0);
    update llmqueue.attempt a set top_up_cell = v_budget.cell, top_up_tokens = v_more where a.fence = p_fence;
    return true;
end
$$;
comment on function llmqueue.top_up is
    'Raises the charge of an attempt that was not sent yet. For workers.';
