-- What it does: says what a model may be given at p_now: calls and tokens, by its windows, its day and its pace.
-- Returns: a budget, see the type; calls may be negative after a limit was lowered.
-- Locks: none; the caller holds the model's advisory lock.
-- Why: the ledger is the hard cap: every cell of 250 ms that touches the last window + guard is counted, so a grant and
--   one that is no longer counted lie at least window + guard apart. The bucket, a second's worth of calls, only smooths:
--   it is refilled at the rate, and at 1.1 to 1.5 times the rate while the window holds less than an even flow would, so
--   that lost time is made up for and calls do not bunch (decision 23). Both are read from insert-only rows (design I2).
create or replace function llmqueue_internal.headroom(p_config llmqueue.model_config, p_now timestamptz)
returns llmqueue_internal.budget language plpgsql stable set jit = off set plan_cache_mode = force_generic_plan as $$
declare
    v_cell_s constant double precision := 0.25::double precision;
    v_budget llmqueue_internal.budget;
    v_used record;
    v_last record;
    v_first bigint;
    v_rate double precision;
    v_capacity double precision;
    v_burst bigint;
    v_age_s double precision;
    v_even double precision;       -- the part of the limit that an even flow would have used
    v_behind_s double precision;   -- how long an even flow takes for what is missing to it
begin
    v_budget.model := p_config.model;
    v_budget.configured := p_config;
    v_budget.rpm := llmqueue_internal.effective_rpm(p_config.model, p_config.rpm, p_now);
    select l.window_s,
           l.window_s + case when p_now < l.guard_kept_until then greatest(l.guard_s, l.guard_before_s) else l.guard_s end
      into strict v_budget.window_s, v_budget.span_s from llmqueue.limiter l;
    v_rate := v_budget.rpm / v_budget.window_s;
    v_budget.capacity := greatest(2, v_budget.rpm / 60.0::double precision);
    select g.cell, g.level, g.token_level, g.granted_at, g.turn, g.hot_at, g.open_from into v_last
      from llmqueue.ledger_grant g where g.model = p_config.model order by g.cell desc, g.grant_no desc limit 1;

    v_budget.granted_at := greatest(p_now, v_last.granted_at);   -- a clock that stepped back is held (I7)
    v_budget.cell := floor(extract(epoch from v_budget.granted_at) / v_cell_s::numeric)::bigint;
    v_budget.turn := coalesce(v_last.turn, 0);
    v_budget.hot_at := v_last.hot_at;
    v_budget.open_cell := v_last.cell;
    v_budget.open_from := v_last.open_from;
    select coalesce(sum(g.calls), 0), coalesce(sum(g.hot_calls), 0), coalesce(sum(g.tokens), 0)::bigint, coalesce(sum(g.output_tokens), 0)::bigint
      into v_budget.open_calls, v_budget.open_hot_calls, v_budget.open_tokens, v_budget.open_output_tokens
      from llmqueue.ledger_grant g where g.model = p_config.model and g.cell = v_last.cell;
    v_first := floor((extract(epoch from v_budget.granted_at) - v_budget.span_s::numeric) / v_cell_s::numeric)::bigint;
    if p_config.tpm is null and p_config.output_tpm is null then   -- two of four sums over some 240 rows less, for most models
        select coalesce(sum(c.calls), 0) as calls, coalesce(sum(c.hot_calls), 0) as hot_calls, 0::bigint as tokens, 0::bigint as output_tokens,
               min(c.cell) as oldest
          into v_used from llmqueue.ledger_cell c where c.model = p_config.model and c.cell >= v_first;
    else
        select coalesce(sum(c.calls), 0) as calls, coalesce(sum(c.hot_calls), 0) as hot_calls, coalesce(sum(c.tokens), 0)::bigint as tokens,
               coalesce(sum(c.output_tokens), 0)::bigint as output_tokens, min(c.cell) as oldest
          into v_used from llmqueue.ledger_cell c where c.model = p_config.model and c.cell >= v_first;
    end if;
    if v_last.cell >= v_first then
        v_used.calls := v_used.calls + v_budget.open_calls;
        v_used.hot_calls := v_used.hot_calls + v_budget.open_hot_calls;
        v_used.tokens := v_used.tokens + v_budget.open_tokens;
        v_used.output_tokens := v_used.output_tokens + v_budget.open_output_tokens;
        v_used.oldest := least(v_used.oldest, v_last.cell);
    end if;

    v_age_s := (extract(epoch from v_budget.granted_at) - coalesce(v_used.oldest, v_budget.cell) * v_cell_s::numeric)::double precision;
    v_even := least(1, v_age_s / (v_budget.span_s + v_cell_s));
    v_behind_s := greatest(0, v_budget.rpm * v_even - v_used.calls) / nullif(v_rate, 0);
    v_budget.pace := v_rate * case when v_behind_s > 0 then 1 + greatest(0.1, least(0.5, v_behind_s / 2)) else 1 end;
    v_age_s := extract(epoch from v_budget.granted_at - v_last.granted_at)::double precision;
    v_budget.level := least(v_budget.capacity, coalesce(
        -- a debt from before a limit was lowered is no larger than what the window holds
        greatest(v_last.level + v_budget.pace * v_age_s, v_budget.capacity - v_used.calls), v_budget.capacity));

    v_budget.rpm_free := v_budget.rpm - v_used.calls;
    v_budget.day_calls := llmqueue_internal.day_headroom(p_config, 'calls', p_now);
    v_burst := (select min(b.free) from llmqueue_internal.burst_headroom(v_budget) b);
    -- lent to cold tasks until a hot one comes; then kept for ten minutes, as much as came of late (I13)
    v_budget.reserve := case when p_config.hot_share > 0 and v_budget.hot_at > v_budget.granted_at - interval '10 minutes'
                             then least(greatest(1, floor(p_config.hot_share * v_budget.rpm)),
                                        2 + v_used.hot_calls / 10, v_budget.rpm - 1)
                             else 0 end::integer;
    v_budget.calls := greatest(-1, least(v_budget.rpm_free - v_budget.reserve, v_burst, v_budget.day_calls, floor(v_budget.level)::bigint))::integer;
    v_budget.hot_calls := greatest(-1, least(v_budget.rpm_free, v_burst, v_budget.day_calls, floor(v_budget.level + v_budget.capacity)::bigint))::integer;

    v_budget.tpm_free := p_config.tpm - v_used.tokens;
    v_budget.output_free := p_config.output_tpm - v_used.output_tokens;
    v_budget.day_tokens := llmqueue_internal.day_headroom(p_config, 'tokens', p_now);
    v_budget.token_reserve := coalesce(least(p_config.hot_share * p_config.tpm, v_budget.reserve * (v_used.tokens::double precision / greatest(1, v_used.calls))), 0)::bigint;
    v_budget.hot_tokens := v_budget.tpm_free;
    v_budget.tokens := v_budget.tpm_free - v_budget.token_reserve;
    v_capacity := p_config.tpm / 60.0::double precision;
    v_budget.token_level := least(v_capacity, coalesce(
        greatest(v_last.token_level + p_config.tpm / v_budget.window_s * v_age_s * case when v_used.tokens < p_config.tpm * v_even then 3 else 1 end,
                 v_capacity - v_used.tokens),
        v_capacity));
    if p_config.tpm is not null or p_config.tpd is not null or p_config.output_tpm is not null then
        select * into v_budget.bytes_ratio, v_budget.input_overhead, v_budget.output_expected from llmqueue_internal.expected_tokens(p_config, v_budget.open_from);
    end if;
    return v_budget;
end
$$;
