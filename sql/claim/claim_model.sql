-- What it does: claims tasks for one model: lock, clock, cooldown, limits, tasks, charge, refusal.
-- Returns: the refusal, the tasks, the user whom each lane served last, and the cursors for the next claim.
-- Locks: the model's advisory lock until the end of the transaction, then task rows, which are never waited for.
-- Why: the lock is a statement of its own in a VOLATILE function under READ COMMITTED, so that what follows sees all
--   that was committed under the lock before; the clock is read after it. Lock, read and write in one statement granted
--   6,400 calls against a limit of 1,000 (design I1).
create or replace function llmqueue_internal.claim_model(
    p_worker uuid, p_model text, p_may_wait boolean, p_shares jsonb, p_users jsonb, p_slots integer,
    p_hot_slots integer, p_cursors llmqueue_internal.resume_cursor[] default null)
returns llmqueue_internal.model_claim language plpgsql volatile as $$
declare
    v_now timestamptz;
    v_has_cooldown boolean;
    v_has_ceiling boolean;  -- a learned one, of the calls in flight
    v_config llmqueue.model_config;
    v_granted llmqueue_internal.model_claim;
    v_refusal llmqueue_internal.claim_row;
    v_cooldown record;
    v_probes integer;       -- 1: only a probe may go out; else null
    v_free record;
    v_why record;
    v_budget llmqueue_internal.budget;
    v_batch llmqueue_internal.batch;
    v_most integer;         -- calls that may be in flight
    v_is_full boolean := false;
    v_waited_s double precision;
begin
    v_granted.tasks := array[]::llmqueue_internal.running_task[];
    v_granted.users := p_users;
    v_granted.cursors := p_cursors;
    v_refusal.model := p_model;
    v_batch := llmqueue_internal.choose_lanes(
        p_model, p_shares, p_slots, p_hot_slots, p_users, llmqueue_internal.clock(), p_cursors);
    if cardinality(v_batch.lanes) = 0 then
        v_refusal.reason := llmqueue_internal.empty_reason(p_model, p_shares);
        v_granted.refusal := v_refusal;
        return v_granted;
    elsif not llmqueue_internal.lock_model(p_model, p_may_wait) then
        v_refusal.reason := 'contended';
        v_granted.refusal := v_refusal;
        return v_granted;
    end if;
    -- whatever clock() says
    v_waited_s := extract(epoch from clock_timestamp() - statement_timestamp())::double precision;
    v_now := llmqueue_internal.clock();
    select c, l.guard_s, extract(epoch from c.timeout)::double precision, c.dispatch, c.max_batch,
           coalesce(case c.token_mode when 'actual' then s.char_class_ratio_mean else s.char_class_ratio_p95 end, 1),
           s.cooldown_until is not null, s.concurrency_ceiling is not null
      into v_budget.configured, v_refusal.guard_s, v_refusal.timeout_s, v_refusal.dispatch, v_refusal.max_batch,
           v_refusal.char_class_ratio, v_has_cooldown, v_has_ceiling
      from llmqueue.limiter l
      left join llmqueue.model_config c on c.model = p_model
      left join llmqueue.model_state s on s.model = p_model;
    v_config := v_budget.configured;
    if v_config.model is null then
        v_refusal.reason := 'unknown';
        v_granted.refusal := v_refusal;
        return v_granted;
    elsif not llmqueue_internal.is_enabled(v_config) then
        v_refusal.reason := 'paused';
        v_granted.refusal := v_refusal;
        return v_granted;
    elsif v_has_cooldown then
        v_cooldown := llmqueue_internal.check_cooldown(p_model, v_now);
        v_probes := v_cooldown.probes;
        if v_cooldown.is_in_cooldown then
            v_refusal.reason := 'cooldown';
            v_refusal.retry_in_s := v_cooldown.retry_in_s;
            v_granted.refusal := v_refusal;
            return v_granted;
        end if;
    end if;

    v_budget := llmqueue_internal.headroom(v_config, v_now);
    if v_budget.granted_at > v_now + interval '1 second' then
        -- the clock has stepped back: a smaller step is held, else the model would stand still until it catches up (I7)
        perform llmqueue_internal.fill_ledger(p_model);
        v_budget := llmqueue_internal.headroom(v_config, v_now);
    end if;
    v_most := v_config.max_concurrency;
    if v_has_ceiling then
        v_most := llmqueue_internal.effective_concurrency(p_model, v_most, v_now);
    end if;
    -- only these two count open attempts; else the place where the count begins stays where it is
    if v_most is not null or v_budget.bytes_ratio is not null then
        v_free := llmqueue_internal.free_concurrency(p_model, v_most, v_config.hot_share, v_budget.open_from);
        v_budget.open_from := v_free.open_from;
        v_is_full := v_free.cold < least(v_budget.calls, p_slots) or v_free.hot <= 0
            or (p_slots <= 0 and v_free.hot < least(v_budget.hot_calls, p_hot_slots));
        -- what is kept of max_concurrency is for hot tasks alone, not even for the oldest
        v_batch.slots := least(p_slots, v_free.cold);
        v_batch.hot_slots := p_hot_slots + p_slots - v_batch.slots;
        v_budget.calls := least(v_budget.calls, v_free.cold);
        v_budget.hot_calls := least(v_budget.hot_calls, v_free.hot);
    end if;
    if v_probes = 1 then
        v_budget.calls := least(v_budget.calls, 1);
        v_budget.hot_calls := least(v_budget.hot_calls, 1);
    end if;
    if v_budget.hot_calls > 0 then
        v_batch := llmqueue_internal.dequeue(p_worker, v_budget, v_batch, v_now);
        if v_batch.calls > 0 then
            perform llmqueue_internal.charge(v_budget, v_batch.calls, v_batch.hot_calls, v_batch.tokens,
                                             v_batch.output_tokens, v_batch.aged);
            if v_probes = 1 then
                perform llmqueue_internal.note_probe(p_model, (v_batch.rows[1]).fence);
            end if;
        end if;
    else
        v_batch.next_is_hot := (
            select bool_or(llmqueue_internal.next_priority(
                               l.lane, 9223372036854775807, v_batch.cursors,
                               llmqueue_internal.hot_priority()) is not null)
              from unnest(v_batch.lanes) l(lane));
    end if;
    v_why := llmqueue_internal.refusal(v_budget, v_batch, p_shares, v_is_full, v_probes = 1, v_now);
    v_refusal.reason := v_why.reason;
    v_refusal.retry_in_s := v_why.retry_in_s;
    v_refusal.clock_at := v_now;
    v_refusal.waited_s := v_waited_s;
    if v_budget.bytes_ratio is null then
        v_refusal.char_class_ratio := null;   -- no limit on tokens
    end if;
    v_granted.tasks := v_batch.rows;
    v_granted.users := v_batch.users;
    v_granted.cursors := v_batch.cursors;
    v_granted.refusal := v_refusal;
    return v_granted;
end
$$;
