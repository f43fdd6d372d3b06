-- What it does: takes ready tasks of a model's lanes for a worker, as many as its budget and the slots allow, best
--   first, and logs an attempt for each.
-- Returns: the batch with what was taken, and whether the next task in order does not fit now.
-- Locks: rows of the user's table, FOR NO KEY UPDATE SKIP LOCKED; never waits for one.
-- Why: priorities are stepped through one by one (a loose index scan), so rows that are not due end the range of their
--   priority instead of standing in the way of the next. The oldest task has every tenth grant: first when its turn has
--   come, else at the end of the batch (I13). Where all that may be taken is of one lane, one priority and one user,
--   the order is that of age anyway, and the pass for the oldest is left out: it was a sixth of the claim.
create or replace function llmqueue_internal.dequeue(
    p_worker uuid, p_budget llmqueue_internal.budget, p_batch llmqueue_internal.batch, p_now timestamptz)
returns llmqueue_internal.batch language plpgsql volatile as $$
declare
    v_batch llmqueue_internal.batch := p_batch;
    v_best constant bigint := 9223372036854775807;
    v_lowest constant bigint := -9223372036854775808;
    v_hot constant bigint := llmqueue_internal.hot_priority();
    v_most bigint := v_best;
    v_rank bigint;
    v_cold integer := llmqueue_internal.calls_left(p_budget, p_batch, false);   -- so many may be taken that are not hot
    v_for_oldest integer;
    v_calls integer;
    v_before integer;
    v_user record;
    v_waits llmqueue_internal.batch;   -- when the oldest does not fit now
    v_is_more boolean := false;        -- the lanes may have more than was taken
    v_is_in_order boolean := false;    -- the oldest are taken without a pass of their own
begin
    -- the reserve for hot tasks is no reason to pass the oldest over: a flood of them would hold it up for ever
    if p_budget.turn >= 9 and p_batch.slots > 0 and llmqueue_internal.calls_left(p_budget, v_batch, true) > 0 then
        v_batch := llmqueue_internal.dequeue_some(p_worker, p_budget, v_batch, null, 1, p_now);
    end if;
    if v_batch.is_blocked then   -- the oldest waits for its tokens, and all after it; hot tasks need not
        v_waits := v_batch;
        v_batch.is_blocked := false;
    end if;
    v_for_oldest := greatest(0, (p_budget.turn + v_cold) / 10 - v_batch.aged);
    loop
        exit when v_batch.is_blocked or v_batch.has_more;
        if cardinality(v_batch.lanes) = 1 then
            v_rank := case when v_batch.most[1] > 0
                           then llmqueue_internal.next_priority(v_batch.lanes[1], v_most, v_batch.cursors) end;
        else
            v_rank := (select max(llmqueue_internal.next_priority(lanes.lane, v_most, v_batch.cursors))
                         from unnest(v_batch.lanes, v_batch.most) lanes(lane, most) where lanes.most > 0);
        end if;
        exit when v_rank is null or (v_rank < v_hot and v_waits.is_blocked);
        if v_for_oldest > 0 and v_most = v_best and v_rank > v_lowest and v_rank < v_hot and v_batch.cursors is null
           and cardinality(v_batch.lanes) = 1
           and llmqueue_internal.next_priority(v_batch.lanes[1], v_rank - 1, null) is null then
            v_user := llmqueue_internal.next_user(v_batch.lanes[1], v_rank, null, null);
            v_is_in_order := coalesce(
                v_user.user_key
                = (llmqueue_internal.next_user(v_batch.lanes[1], v_rank, v_user.user_key, null)).user_key, false);
        end if;
        v_calls := llmqueue_internal.calls_left(p_budget, v_batch, v_rank >= v_hot)
                   - case when v_rank >= v_hot or v_is_in_order then 0 else v_for_oldest end;
        if v_calls <= 0 then
            v_batch.next_is_hot := v_rank >= v_hot;
            v_is_more := true;
            exit;
        end if;
        v_before := v_batch.calls;
        v_batch := llmqueue_internal.dequeue_some(p_worker, p_budget, v_batch, v_rank, v_calls, p_now);
        v_is_more := v_batch.calls - v_before = v_calls;
        exit when v_rank = v_lowest or v_is_in_order;
        v_most := v_rank - 1;
    end loop;
    if v_is_in_order then
        v_batch.aged := v_batch.aged + least(v_for_oldest, (p_budget.turn + v_batch.calls) / 10 - v_batch.aged);
    elsif v_waits.is_blocked and not v_batch.is_blocked then
        v_batch.is_blocked := true;
        v_batch.next_tokens := v_waits.next_tokens;
        v_batch.next_output_tokens := v_waits.next_output_tokens;
        v_batch.next_is_hot := v_waits.next_is_hot;
    elsif v_is_more and v_for_oldest > 0 and not v_batch.is_blocked and not v_batch.has_more then
        v_calls := least(v_for_oldest, llmqueue_internal.calls_left(p_budget, v_batch, false));
        v_batch := llmqueue_internal.dequeue_some(p_worker, p_budget, v_batch, null, v_calls, p_now);
    end if;
    return v_batch;
end
$$;
