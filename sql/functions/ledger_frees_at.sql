-- What it does: says when enough of what the ledger counts in a window will have left it.
-- Returns: the earliest time by which that many calls, tokens and output tokens have left; p_now if nothing has to; null
--   if the window does not hold so much.
-- Locks: none.
-- Why: a cell leaves as a whole, a window + guard after its end. A microsecond more: rounding must not make it too early.
create or replace function llmqueue.ledger_frees_at(
    p_model text, p_span_s double precision, p_calls bigint, p_tokens bigint, p_output_tokens bigint, p_now timestamptz)
returns timestamptz language plpgsql stable set jit = off set plan_cache_mode = force_generic_plan as $$
declare
    v_first bigint := floor((extract(epoch from p_now) - p_span_s::numeric) / 0.25)::bigint;
begin
    if greatest(p_calls, p_tokens, p_output_tokens, 0) = 0 then
        return p_now;
    end if;
    return (
        select to_timestamp((min(freed.cell) + 1) * 0.25::double precision + p_span_s) + interval '1 microsecond'
          from (select x.cell, sum(sum(x.calls)) over in_time as calls, sum(sum(x.tokens)) over in_time as tokens,
                       sum(sum(x.output_tokens)) over in_time as output_tokens
                  from (select c.cell, c.calls, c.tokens, c.output_tokens
                          from llmqueue.ledger_cell c where c.model = p_model and c.cell >= v_first
                        union all
                        select g.cell, g.calls, g.tokens, g.output_tokens
                          from llmqueue.ledger_grant g
                         where g.model = p_model and g.cell >= v_first
                           and g.cell = (select max(last.cell) from llmqueue.ledger_grant last where last.model = p_model)) x
                 group by x.cell
                window in_time as (order by x.cell)) freed
         where freed.calls >= coalesce(p_calls, 0) and freed.tokens >= coalesce(p_tokens, 0)
           and freed.output_tokens >= coalesce(p_output_tokens, 0));
end
$$;
