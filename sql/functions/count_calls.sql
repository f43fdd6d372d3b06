-- What it does: sums the calls that a model was granted in the last minute, from its ledger.
-- Returns: calls, refunds taken off; 0 for a model that never ran.
-- Locks: none.
-- Why: whole cells of 250 ms that lie within the last 60 s, so it never shows more than the limiter granted in one
--   window. The cell of the last grant is open: it is summed from ledger_grant, all others are closed. Rows of a ledger
--   that was filled after a clock step (I7) stand for no call.
create or replace function llmqueue.count_calls(p_model text, p_now timestamptz default null)
returns bigint language plpgsql stable security definer set search_path = pg_catalog, pg_temp as $$
declare
    v_first bigint := floor((extract(epoch from coalesce(p_now, clock_timestamp())) - 60) / 0.25)::bigint + 1;
    v_full constant integer := 1000000000;
    v_open bigint;
    v_calls bigint;
begin
    select g.cell into v_open
      from llmqueue.ledger_grant g where g.model = p_model order by g.cell desc, g.grant_no desc limit 1;
    select coalesce(sum(c.calls), 0) into v_calls
      from llmqueue.ledger_cell c where c.model = p_model and c.cell >= v_first and c.calls < v_full;
    if v_open >= v_first then
        v_calls := v_calls + (select sum(g.calls) from llmqueue.ledger_grant g where g.model = p_model and g.cell = v_open);
    end if;
    return greatest(v_calls, 0);
end
$$;
