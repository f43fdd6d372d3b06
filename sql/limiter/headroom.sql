-- What it does: says what a model may be given at p_now: calls and tokens, by its windows, its day and its pace.
-- Returns: a budget, see the type; calls may be negative after a limit was lowered.
-- Locks: none; the caller holds the model's advisory lock.
-- Why: the ledger enforces the limit: every cell of 250 ms that touches the last window + guard is counted, so a grant
--   and one that is no longer counted lie at least window + guard apart. The token bucket, a second's worth of calls,
--   only smooths: it is refilled at the rate, and at 1.1 to 1.5 times the rate while the window holds less than an even
--   flow would, so that lost time is made up for and calls do not bunch (decision 23). Both are read from insert-only
--   rows (design I2), in two statements: a statement costs more than what it reads here (decision 49).
create or replace function llmqueue_internal.headroom(p_config llmqueue.model_config, p_now timestamptz)
returns llmqueue_internal.budget language plpgsql stable as $$
declare
    v_budget llmqueue_internal.budget;
    v_has_ceiling boolean;         -- a learned one, of calls a minute
    v_level double precision;      -- of the buckets after the last grant
    v_token_level double precision;
    v_last_at timestamptz;         -- the last grant
    v_used record;                 -- what the window holds
    v_first bigint;
    v_rate double precision;
    v_bucket double precision;     -- capacity of the bucket of tokens
    v_burst bigint;
    v_age_s double precision;
    v_even double precision;       -- the part of the limit that an even flow would have used
    v_behind_s double precision;   -- how long an even flow takes for what is missing to it
begin
    v_budget.model := p_config.model;
    v_budget.configured := p_config;
    select l.window_s,
           l.window_s + case when p_now < l.guard_kept_until then greatest(l.guard_s, l.guard_before_s)
                             else l.guard_s end,
           s.rpm_ceiling is not null, g.level, g.token_level, g.granted_at,
           greatest(p_now, g.granted_at),   -- a clock that stepped back is held (I7)
           coalesce(g.turn, 0), g.hot_at, g.open_from, g.cell, open.calls, open.hot_calls, open.tokens,
           open.output_tokens
      into strict v_budget.window_s, v_budget.span_s,
           v_has_ceiling, v_level, v_token_level, v_last_at,
           v_budget.granted_at,
           v_budget.turn, v_budget.hot_at, v_budget.open_from, v_budget.open_cell, v_budget.open_calls,
           v_budget.open_hot_calls, v_budget.open_tokens, v_budget.open_output_tokens
      from llmqueue.limiter l
      left join llmqueue.model_state s on s.model = p_config.model
      left join lateral (select x.* from llmqueue.ledger_grant x
                          where x.model = p_config.model order by x.cell desc, x.grant_no desc limit 1) g on true
     cross join lateral (select coalesce(sum(x.calls), 0) as calls, coalesce(sum(x.hot_calls), 0) as hot_calls,
                                coalesce(sum(x.tokens), 0)::bigint as tokens,
                                coalesce(sum(x.output_tokens), 0)::bigint as output_tokens
                           from llmqueue.ledger_grant x where x.model = p_config.model and x.cell = g.cell) open;
    v_budget.rpm := p_config.rpm;
    if v_has_ceiling then
        v_budget.rpm := llmqueue_internal.effective_rpm(p_config.model, p_config.rpm, p_now);
    end if;
    v_rate := v_budget.rpm / v_budget.window_s;
    v_budget.capacity := greatest(2, v_budget.rpm / 60.0::double precision);
    v_budget.cell := llmqueue_internal.cell_of(v_budget.granted_at);
    v_first := llmqueue_internal.cell_of(v_budget.granted_at, v_budget.span_s);
    -- two of four sums over some 240 rows less, for most models
    if p_config.tpm is null and p_config.output_tpm is null then
        select coalesce(sum(c.calls), 0) as calls, coalesce(sum(c.hot_calls), 0) as hot_calls,
               0::bigint as tokens, 0::bigint as output_tokens, min(c.cell) as oldest
          into v_used from llmqueue.ledger_cell c where c.model = p_config.model and c.cell >= v_first;
    else
        select coalesce(sum(c.calls), 0) as calls, coalesce(sum(c.hot_calls), 0) as hot_calls,
               coalesce(sum(c.tokens), 0)::bigint as tokens, coalesce(sum(c.output_tokens), 0)::bigint as output_tokens,
               min(c.cell) as oldest
          into v_used from llmqueue.ledger_cell c where c.model = p_config.model and c.cell >= v_first;
    end if;
    if v_budget.open_cell >= v_first then
        v_used.calls := v_used.calls + v_budget.open_calls;
        v_used.hot_calls := v_used.hot_calls + v_budget.open_hot_calls;
        v_used.tokens := v_used.tokens + v_budget.open_tokens;
        v_used.output_tokens := v_used.output_tokens + v_budget.open_output_tokens;
        v_used.oldest := least(v_used.oldest, v_budget.open_cell);
    end if;

    v_age_s := (extract(epoch from v_budget.granted_at)
                - coalesce(v_used.oldest, v_budget.cell) * llmqueue_internal.cell_s()::numeric)::double precision;
    v_even := least(1, v_age_s / (v_budget.span_s + llmqueue_internal.cell_s()));
    v_behind_s := greatest(0, v_budget.rpm * v_even - v_used.calls) / nullif(v_rate, 0);
    v_budget.pace := v_rate * case when v_behind_s > 0 then 1 + greatest(0.1, least(0.5, v_behind_s / 2)) else 1 end;
    v_age_s := extract(epoch from v_budget.granted_at - v_last_at)::double precision;
    v_budget.level := least(v_budget.capacity, coalesce(
        -- a debt from before a limit was lowered is no larger than what the window holds
        greatest(v_level + v_budget.pace * v_age_s, v_budget.capacity - v_used.calls), v_budget.capacity));

    v_budget.rpm_free := v_budget.rpm - v_used.calls;
    if p_config.rpd is not null then
        v_budget.day_calls := llmqueue_internal.day_headroom(p_config, 'calls', p_now);
    end if;
    if p_config.burst_windows is not null then
        v_burst := (select min(b.free) from llmqueue_internal.burst_headroom(v_budget) b);
    end if;
    -- lent to cold tasks until a hot one comes; then kept for ten minutes, as much as came of late (I13)
    v_budget.reserve := case when p_config.hot_share > 0
                              and v_budget.hot_at > v_budget.granted_at - interval '10 minutes'
                             then least(greatest(1, floor(p_config.hot_share * v_budget.rpm)),
                                        2 + v_used.hot_calls / 10, v_budget.rpm - 1)
                             else 0 end::integer;
    v_budget.calls := greatest(-1, least(v_budget.rpm_free - v_budget.reserve, v_burst, v_budget.day_calls,
                                         floor(v_budget.level)::bigint))::integer;
    v_budget.hot_calls := greatest(-1, least(v_budget.rpm_free, v_burst, v_budget.day_calls,
                                             floor(v_budget.level + v_budget.capacity)::bigint))::integer;
    if p_config.tpm is null and p_config.tpd is null and p_config.output_tpm is null then
        return v_budget;
    end if;

    v_budget.tpm_free := p_config.tpm - v_used.tokens;
    v_budget.output_free := p_config.output_tpm - v_used.output_tokens;
    if p_config.tpd is not null then
        v_budget.day_tokens := llmqueue_internal.day_headroom(p_config, 'tokens', p_now);
    end if;
    v_budget.token_reserve := coalesce(least(
        p_config.hot_share * p_config.tpm,
        v_budget.reserve * (v_used.tokens::double precision / greatest(1, v_used.calls))), 0)::bigint;
    v_budget.hot_tokens := v_budget.tpm_free;
    v_budget.tokens := v_budget.tpm_free - v_budget.token_reserve;
    v_bucket := p_config.tpm / 60.0::double precision;
    v_budget.token_level := least(v_bucket, coalesce(
        greatest(v_token_level + p_config.tpm / v_budget.window_s * v_age_s
                                      * case when v_used.tokens < p_config.tpm * v_even then 3 else 1 end,
                 v_bucket - v_used.tokens),
        v_bucket));
    select * into v_budget.bytes_ratio, v_budget.input_overhead, v_budget.output_expected
      from llmqueue_internal.expected_tokens(p_config, v_budget.open_from);
    return v_budget;
end
$$;
