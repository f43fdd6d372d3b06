-- What it does: deletes ledger rows that no window reaches any more; cells are added to ledger_minute first.
-- Returns: how many rows were deleted.
-- Locks: the rows, SKIP LOCKED: two workers may prune at once; and the rows of ledger_minute that are added to.
-- Why: bounded steps, a few thousand rows at the most each time; the range that claims read starts behind them. The
--   rows are chosen in a MATERIALIZED CTE: a plan that runs a subquery again and again takes its LIMIT each time.
--   Minutes are kept for three days: the daily limits need one, wherever its midnight is.
create or replace function llmqueue_internal.prune_ledger()
returns integer language plpgsql volatile as $$
declare
    v_cell_s constant double precision := llmqueue_internal.cell_s();
    v_cells_a_minute constant bigint := 240::bigint;
    v_full constant integer := llmqueue_internal.ledger_full();
    v_cell constant bigint := llmqueue_internal.cell_of(llmqueue_internal.clock());
    v_before bigint;
    v_grants integer;
    v_cells integer;
begin
    select v_cell - greatest(3 * v_cells_a_minute,
                             ceil((l.window_s + 2 * greatest(l.guard_s, l.guard_before_s) + 2) / v_cell_s))::bigint
      into v_before
      from llmqueue.limiter l;
    with old as materialized (
        select o.model, o.cell, o.grant_no
          from (select distinct c.model from llmqueue.model_config c) m
         cross join lateral (
               select x.model, x.cell, x.grant_no from llmqueue.ledger_grant x
                where x.model = m.model
                  and x.cell < v_cell - 12 * v_cells_a_minute   -- reconciliations look for the grant for so long
                  -- the last grant carries the level of the token bucket and the open cell
                  and x.cell < (select max(l.cell) from llmqueue.ledger_grant l where l.model = m.model)
                order by x.cell limit 2000 for update skip locked) o
    )
    delete from llmqueue.ledger_grant g using old
     where g.model = old.model and g.cell = old.cell and g.grant_no = old.grant_no;
    get diagnostics v_grants = row_count;
    with old as materialized (
        select o.model, o.cell, o.entry_no
          from (select distinct c.model from llmqueue.model_config c) m
         cross join lateral (
               select x.model, x.cell, x.entry_no from llmqueue.ledger_cell x
                where x.model = m.model and x.cell < v_before
                order by x.cell limit 2000 for update skip locked) o
    ), gone as (
        delete from llmqueue.ledger_cell c using old
         where c.model = old.model and c.cell = old.cell and c.entry_no = old.entry_no
        returning c.model, c.cell, c.calls, c.tokens, c.output_tokens
    ), added as (
        insert into llmqueue.ledger_minute as m (model, minute, calls, tokens, output_tokens)
        select gone.model, gone.cell / v_cells_a_minute, sum(gone.calls), sum(gone.tokens), sum(gone.output_tokens)
          from gone where gone.calls < v_full group by 1, 2 order by 1, 2
        on conflict (model, minute) do update
           set calls = m.calls + excluded.calls, tokens = m.tokens + excluded.tokens,
               output_tokens = m.output_tokens + excluded.output_tokens
    )
    select count(*)::integer into v_cells from gone;
    delete from llmqueue.ledger_minute m where m.minute < v_cell / v_cells_a_minute - 3 * 24 * 60;
    return v_grants + v_cells;
end
$$;
