-- What it does: says why a claim took no more for a model, and when to come back.
-- Returns: one row: reason (null: the claim took all it wanted) and retry_in_s, null when only a wake-up or the poll
--   can tell.
-- Locks: none; the caller holds the model's advisory lock.
-- Why: called after the charge, so that the calls just granted count; without one the budget is still what it was. A
--   share of a pool that was used up is no empty lane while more tasks wait there.
create or replace function llmqueue_internal.refusal(
    p_budget llmqueue_internal.budget, p_batch llmqueue_internal.batch, p_shares jsonb, p_is_full boolean,
    p_is_probe boolean, p_now timestamptz, out reason text, out retry_in_s double precision)
language plpgsql stable as $$
declare
    v_slots integer := p_batch.slots - (p_batch.calls - p_batch.hot_calls)
        - greatest(0, p_batch.hot_calls - p_batch.hot_slots);
    v_is_hot boolean := coalesce(p_batch.next_is_hot, false);
    v_unbounded llmqueue_internal.batch;
    v_wait record;
begin
    if p_is_probe then
        reason := 'cooldown';
        return;
    elsif p_batch.has_more then
        return;
    elsif not p_batch.is_blocked then
        if v_slots <= 0 and not v_is_hot then   -- all slots are used: most claims end here
            reason := case when p_is_full then 'concurrency' end;
            return;
        end if;
        -- had the lanes been told to give as many as there are slots
        v_unbounded := p_batch;
        v_unbounded.most := array_fill(v_slots + p_batch.hot_slots, array[cardinality(p_batch.lanes)]);
        if llmqueue_internal.calls_left(p_budget, v_unbounded, v_is_hot) > 0 then
            if not coalesce((select bool_or((p_shares #>> array[l.lane, 'is_more'])::boolean)
                               from unnest(p_batch.lanes, p_batch.most) l(lane, most) where l.most <= 0), false) then
                reason := 'empty';
            end if;
            return;
        elsif p_is_full then
            reason := 'concurrency';
            return;
        end if;
    end if;
    select * into v_wait
      from llmqueue_internal.when_free(
               case when p_batch.calls = 0 then p_budget
                    else llmqueue_internal.headroom(p_budget.configured, p_now) end,
               v_is_hot, case when v_is_hot then 1 else v_slots end,
               case when p_batch.is_blocked then p_batch.next_tokens else 0 end,
               case when p_batch.is_blocked then p_batch.next_output_tokens else 0 end);
    reason := v_wait.reason;
    retry_in_s := case when v_wait.reason is not null
                       then extract(epoch from v_wait.retry_at - p_now)::double precision end;
end
$$;
