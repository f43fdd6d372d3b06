-- What it does: says how many calls the model's ledger and bucket allow at p_now, and when to ask again.
-- Returns: one row; calls 0..p_wanted; reason is null when all wanted are allowed, else 'rpm' (the ledger is full) or
--   'pace' (the bucket is); retry_at when more may be had; the rest is what charge() needs.
-- Locks: none; the caller holds the model's advisory lock.
-- Why: the ledger is the hard cap: every cell of 250 ms that touches the last window + guard is counted, so a grant and
--   one that is no longer counted lie at least window + guard apart. The bucket, a second's worth of calls refilled at
--   1.1 times the rate, only smooths. Both are read from insert-only rows (design I2).
create or replace function llmqueue.allowance(
    p_model text, p_rpm integer, p_wanted integer, p_now timestamptz,
    out calls integer, out reason text, out retry_at timestamptz,
    out granted_at timestamptz, out cell bigint, out level double precision,
    out open_cell bigint, out open_calls bigint)
language plpgsql stable as $$
declare
    v_cell_s constant numeric := 0.25;
    v_tick constant interval := interval '1 microsecond';   -- rounding must not make retry_at too early
    v_span_s numeric;
    v_first bigint;
    v_used bigint;
    v_rate double precision;
    v_capacity double precision := greatest(2, p_rpm / 60.0::double precision);
    v_last record;
begin
    select (l.window_s
            + case when p_now < l.guard_kept_until then greatest(l.guard_s, l.guard_before_s) else l.guard_s end)::numeric,
           p_rpm / l.window_s
      into strict v_span_s, v_rate from llmqueue.limiter l;
    select g.cell, g.level, g.granted_at into v_last
      from llmqueue.ledger_grant g where g.model = p_model order by g.cell desc, g.grant_no desc limit 1;

    granted_at := greatest(p_now, v_last.granted_at);   -- a clock that stepped back is held (I7)
    cell := floor(extract(epoch from granted_at) / v_cell_s)::bigint;
    open_cell := v_last.cell;
    v_first := floor((extract(epoch from granted_at) - v_span_s) / v_cell_s)::bigint;
    select coalesce(sum(g.calls), 0) into open_calls
      from llmqueue.ledger_grant g where g.model = p_model and g.cell = v_last.cell;
    select coalesce(sum(c.calls), 0) into v_used
      from llmqueue.ledger_cell c where c.model = p_model and c.cell >= v_first;
    if v_last.cell >= v_first then
        v_used := v_used + open_calls;
    end if;

    level := least(v_capacity, coalesce(
        v_last.level + 1.1 * v_rate * extract(epoch from granted_at - v_last.granted_at), v_capacity));
    calls := greatest(0, least(p_wanted, p_rpm - v_used, floor(level)))::integer;
    if calls = p_wanted then
        return;
    end if;
    if v_used + calls >= p_rpm then
        reason := 'rpm';
        select greatest(to_timestamp(((min(freeing.cell) + 1) * v_cell_s + v_span_s)::double precision),
                        granted_at + make_interval(secs => (1 - (level - calls)) / (1.1 * v_rate))) + v_tick into retry_at
          from (select x.cell, sum(sum(x.calls)) over (order by x.cell) as freed
                  from (select c.cell, c.calls from llmqueue.ledger_cell c
                         where c.model = p_model and c.cell >= v_first
                        union all
                        select v_last.cell, open_calls where v_last.cell >= v_first
                        union all
                        select allowance.cell, allowance.calls) x
                 group by x.cell) freeing
         where v_used + calls - freeing.freed < p_rpm;
    else
        reason := 'pace';
        -- not for every single call: a quarter of a second's worth, so that a fast model is asked 4 times a second
        retry_at := granted_at + v_tick + make_interval(secs =>
            (greatest(1, least(p_wanted - calls, v_capacity / 4)) - (level - calls)) / (1.1 * v_rate));
    end if;
end
$$;
