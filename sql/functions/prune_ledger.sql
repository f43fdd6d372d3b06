-- What it does: deletes ledger rows that no window can reach any more; cells are kept for an hour for the views.
-- Returns: how many rows.
-- Locks: the rows, SKIP LOCKED: two workers may do this at once.
-- Why: bounded steps, a few thousand rows at most each time; the range that claims read starts behind them.
create or replace function llmqueue.prune_ledger(p_now timestamptz default null)
returns integer language plpgsql volatile as $$
declare
    v_cell bigint := floor(extract(epoch from coalesce(p_now, clock_timestamp())) / 0.25)::bigint;
    v_grants integer;
    v_cells integer;
begin
    delete from llmqueue.ledger_grant g
     where (g.model, g.cell, g.grant_no) in (
           select o.model, o.cell, o.grant_no
             from (select distinct c.model from llmqueue.model_config c) m
            cross join lateral (select x.model, x.cell, x.grant_no from llmqueue.ledger_grant x
                                 where x.model = m.model and x.cell < v_cell - 1200
                                   -- the last grant carries the bucket's level and the open cell
                                   and x.cell < (select max(l.cell) from llmqueue.ledger_grant l where l.model = m.model)
                                 order by x.cell limit 2000 for update skip locked) o);
    get diagnostics v_grants = row_count;
    delete from llmqueue.ledger_cell c
     where (c.model, c.cell, c.entry_no) in (
           select o.model, o.cell, o.entry_no
             from (select distinct c.model from llmqueue.model_config c) m
            cross join lateral (select x.model, x.cell, x.entry_no from llmqueue.ledger_cell x
                                 where x.model = m.model and x.cell < v_cell - 14400 order by x.cell limit 2000 for update skip locked) o);
    get diagnostics v_cells = row_count;
    return v_grants + v_cells;
end
$$;
