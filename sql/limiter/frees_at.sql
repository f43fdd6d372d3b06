-- What it does: says when enough of what the ledger counts in a window will have left it.
-- Returns: the earliest time by which that many calls, tokens and output tokens have left; p_now if nothing has to;
--   null if the window does not hold so much.
-- Locks: none.
-- Why: a cell leaves as a whole, a window + guard after its end. A microsecond more: rounding must not make it too
--   early. Read from the oldest on and no further than needed: mostly the first cell is enough, of 242. Each half comes
--   in its order: the two are merged, and not sorted, which would read all.
create or replace function llmqueue_internal.frees_at(
    p_model text, p_span_s double precision, p_calls bigint, p_tokens bigint, p_output_tokens bigint, p_now timestamptz)
returns timestamptz language plpgsql stable
set jit = off set plan_cache_mode = force_generic_plan set enable_seqscan = off set enable_bitmapscan = off
set enable_sort = off as $$
declare
    v_first bigint := llmqueue_internal.cell_of(p_now, p_span_s);
    v_open bigint := (select g.cell from llmqueue.ledger_grant g where g.model = p_model order by g.cell desc limit 1);
    v_entry record;
    v_cell bigint;
    v_calls bigint := 0::bigint;
    v_tokens bigint := 0::bigint;
    v_output_tokens bigint := 0::bigint;
    v_is_enough boolean := false;
begin
    if greatest(p_calls, p_tokens, p_output_tokens, 0) = 0 then
        return p_now;
    end if;
    for v_entry in
        select x.cell, x.calls, x.tokens, x.output_tokens
          from ((select c.cell, c.calls, c.tokens, c.output_tokens
                   from llmqueue.ledger_cell c where c.model = p_model and c.cell >= v_first order by c.model, c.cell)
                union all
                (select g.cell, g.calls, g.tokens, g.output_tokens
                   from llmqueue.ledger_grant g where g.model = p_model and g.cell >= v_first and g.cell = v_open
                       order by g.model, g.cell)) x
         order by x.cell
    loop
        exit when v_is_enough and v_entry.cell <> v_cell;
        v_cell := v_entry.cell;
        v_calls := v_calls + v_entry.calls;
        v_tokens := v_tokens + v_entry.tokens;
        v_output_tokens := v_output_tokens + v_entry.output_tokens;
        v_is_enough := v_calls >= coalesce(p_calls, 0) and v_tokens >= coalesce(p_tokens, 0)
                       and v_output_tokens >= coalesce(p_output_tokens, 0);
    end loop;
    if v_is_enough then
        return to_timestamp((v_cell + 1) * llmqueue_internal.cell_s() + p_span_s) + interval '1 microsecond';
    end if;
    return null;
end
$$;
