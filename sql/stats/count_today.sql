-- What it does: sums the calls and tokens that a model was charged since the midnight of a time zone, from its
--   ledger.
-- Returns: one row: calls, and tokens of input and output together, as rpd and tpd count them; 0 for a model that
--   never ran.
-- Locks: none.
-- Why: whole minutes from ledger_minute (1,440 index entries at the most), the rest from the cells that are not in
--   there yet; one statement, since prune_ledger() moves them in one. SECURITY DEFINER as count_60s().
create or replace function llmqueue_internal.count_today(
    p_model text, p_timezone text, p_now timestamptz, out calls bigint, out tokens bigint)
language plpgsql stable security definer set search_path = pg_catalog, pg_temp as $$
declare
    v_cells_a_minute constant bigint := 240::bigint;
    v_minute constant bigint
        := floor(extract(epoch from llmqueue_internal.day_start(p_timezone, p_now)) / 60)::bigint;
    v_full constant integer := llmqueue_internal.ledger_full();
    v_full_of_tokens constant bigint := 1000000000000000;
begin
    select greatest(0, sum(x.calls))::bigint, greatest(0, sum(x.tokens))::bigint into calls, tokens
      from (select m.calls, m.tokens + m.output_tokens as tokens
              from llmqueue.ledger_minute m
             where m.model = p_model and m.minute >= v_minute and m.calls < v_full and m.tokens < v_full_of_tokens
            union all
            select c.calls, c.tokens + c.output_tokens
              from llmqueue.ledger_cell c
             where c.model = p_model and c.cell >= v_minute * v_cells_a_minute
               and c.calls < v_full and c.tokens < v_full_of_tokens
            union all
            select g.calls, g.tokens + g.output_tokens
              from llmqueue.ledger_grant g
             where g.model = p_model and g.cell >= v_minute * v_cells_a_minute
               and g.cell = (select last.cell from llmqueue.ledger_grant last
                              where last.model = p_model order by last.cell desc, last.grant_no desc limit 1)) x;
end
$$;
