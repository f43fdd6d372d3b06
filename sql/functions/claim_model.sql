-- What it does: claims tasks for one model: lock, clock, closing, limits, tasks, charge, verdict.
-- Returns: the verdict, the tasks, in each lane the user who was served last, and where reading begins next time.
-- Locks: the model's advisory lock until the end of the transaction, then task rows, which are never waited for.
-- Why: the lock is a statement of its own in a VOLATILE function under READ COMMITTED, so that what follows sees all
--   that was committed under the lock before; the clock is read after it. Lock, read and write in one statement granted
--   6,400 against a limit of 1,000 (design I1).
create or replace function llmqueue.claim_model(
    p_worker uuid, p_model text, p_may_wait boolean, p_shares jsonb, p_users jsonb, p_slots integer, p_hot_slots integer,
    p_now timestamptz, p_marks llmqueue.mark[] default null)
returns llmqueue.granted language plpgsql volatile as $$
declare
    v_now timestamptz;
    v_config llmqueue.model_config;
    v_granted llmqueue.granted;
    v_verdict llmqueue.claimed;
    v_closing record;
    v_room record;
    v_why record;
    v_budget llmqueue.budget;
    v_taking llmqueue.taking;
    v_is_full boolean;
begin
    v_granted.tasks := array[]::llmqueue.leased[];
    v_granted.users := p_users;
    v_granted.marks := p_marks;
    v_verdict.model := p_model;
    v_taking := llmqueue.lanes_of(p_model, p_shares, p_slots, p_hot_slots, p_users, p_now, p_marks);
    if cardinality(v_taking.lanes) = 0 then
        v_verdict.reason := llmqueue.why_nothing(p_model, p_shares);
    elsif not llmqueue.lock_model(p_model, p_may_wait) then
        v_verdict.reason := 'contended';
    else
        v_now := coalesce(p_now, clock_timestamp());
        select c.* into v_config from llmqueue.model_config c where c.model = p_model;
        v_closing := llmqueue.closing(p_model, v_now);
        if v_config.model is null then
            v_verdict.reason := 'unknown';
        elsif not llmqueue.is_able(v_config) then
            v_verdict.reason := 'paused';
        elsif v_closing.is_closed then
            v_verdict.reason := 'closed';
            v_verdict.retry_in_s := v_closing.retry_in_s;
        else
            v_budget := llmqueue.allowance(v_config, v_now);
            if v_budget.granted_at > v_now + interval '1 second' then
                -- the clock has stepped back: a smaller step is held, else the model would stand still until it catches up (I7)
                perform llmqueue.fill_ledger(p_model, v_now);
                v_budget := llmqueue.allowance(v_config, v_now);
            end if;
            v_room := llmqueue.room(p_model, llmqueue.effective_concurrency(p_model, v_config.max_concurrency, v_now), v_config.hot_share, v_budget.open_from);
            v_budget.open_from := v_room.open_from;
            v_is_full := v_room.cold < least(v_budget.calls, p_slots) or v_room.hot <= 0
                or (p_slots <= 0 and v_room.hot < least(v_budget.hot_calls, p_hot_slots));
            -- what is kept of max_concurrency is for hot tasks alone, not even for the oldest
            v_taking.slots := least(p_slots, v_room.cold);
            v_taking.hot_slots := p_hot_slots + p_slots - v_taking.slots;
            v_budget.calls := least(v_budget.calls, v_room.cold, v_closing.probes);
            v_budget.hot_calls := least(v_budget.hot_calls, v_room.hot, v_closing.probes);
            if v_budget.hot_calls > 0 then
                v_taking := llmqueue.lease(p_worker, v_budget, v_taking, v_now);
                if v_taking.calls > 0 then
                    perform llmqueue.charge(v_budget, v_taking.calls, v_taking.hot_calls, v_taking.tokens, v_taking.output_tokens, v_taking.aged);
                    if v_closing.probes = 1 then
                        perform llmqueue.note_probe(p_model, (v_taking.rows[1]).fence);
                    end if;
                end if;
            else
                v_taking.next_is_hot := (select bool_or(llmqueue.next_rank(l.lane, 9223372036854775807, v_taking.marks, 100) is not null)
                                            from unnest(v_taking.lanes) l(lane));
            end if;
            v_why := llmqueue.verdict(v_budget, v_taking, p_shares, v_is_full, v_closing.probes = 1, v_now);
            v_verdict.reason := v_why.reason;
            v_verdict.retry_in_s := v_why.retry_in_s;
            v_verdict.clock_at := v_now;
            v_verdict.waited_s := extract(epoch from v_now - case when p_now is null then statement_timestamp() else p_now end)::double precision;
            v_verdict.timeout_s := extract(epoch from v_config.timeout)::double precision;
            v_verdict.dispatch := v_config.dispatch;
            v_verdict.max_batch := v_config.max_batch;
            if v_budget.bytes_ratio is not null then
                v_verdict.kinds_ratio := coalesce((select case v_config.token_mode when 'actual' then s.kinds_ratio_mean else s.kinds_ratio_p95 end
                                                     from llmqueue.model_state s where s.model = p_model), 1);
            end if;
            v_granted.tasks := v_taking.rows;
            v_granted.users := v_taking.users;
            v_granted.marks := v_taking.marks;
        end if;
    end if;
    select l.guard_s into v_verdict.guard_s from llmqueue.limiter l;
    v_granted.verdict := v_verdict;
    return v_granted;
end
$$;
