-- What it does: sums the calls and tokens that a model was charged in the last minute, from its ledger.
-- Returns: one row: calls, without those that were refunded; tokens and output_tokens, reconciled where the usage is
--   known; 0 for a model that never ran.
-- Locks: none.
-- Why: whole cells of 250 ms that lie within the last 60 s, so the sum is never more than the limiter granted in one
--   window. The cell of the last grant is open: it is summed from ledger_grant, all others are closed. Rows of a ledger
--   that was filled after a clock step (I7) stand for no call. SECURITY DEFINER: whoever may read the views need not
--   read the ledger.
create or replace function llmqueue_internal.count_60s(
    p_model text, p_now timestamptz, out calls bigint, out tokens bigint, out output_tokens bigint)
language plpgsql stable security definer set search_path = pg_catalog, pg_temp as $$
declare
    v_first constant bigint := llmqueue_internal.cell_of(p_now, 60) + 1;
    v_full constant integer := llmqueue_internal.ledger_full();
    v_full_of_tokens constant bigint := 1000000000000000;
    v_open bigint;
begin
    select g.cell into v_open
      from llmqueue.ledger_grant g where g.model = p_model order by g.cell desc, g.grant_no desc limit 1;
    select greatest(0, sum(x.calls))::bigint, greatest(0, sum(x.tokens))::bigint,
           greatest(0, sum(x.output_tokens))::bigint
      into calls, tokens, output_tokens
      from (select c.calls, c.tokens, c.output_tokens
              from llmqueue.ledger_cell c
             where c.model = p_model and c.cell >= v_first and c.calls < v_full and c.tokens < v_full_of_tokens
            union all
            select g.calls, g.tokens, g.output_tokens
              from llmqueue.ledger_grant g
             where g.model = p_model and g.cell = v_open and v_open >= v_first) x;
end
$$;
