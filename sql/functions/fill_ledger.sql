-- What it does: makes the model's ledger full as of p_now, so that nothing is granted for one window.
-- Returns: nothing.
-- Locks: the model's advisory lock, which the caller may hold already.
-- Why: after a clock has stepped by more than can be held, what was sent in the last minute is not known any more: one
--   quiet minute rather than one overshoot (I7). Rows in the future of the new clock are dropped with it: grants first, which waits for a refund
--   that is under way, then cells and refunds.
create or replace function llmqueue.fill_ledger(p_model text, p_now timestamptz default null)
returns void language plpgsql volatile as $$
declare
    v_full constant integer := 1000000000;   -- more than any limit; views and the day's limits leave such rows out
    v_now timestamptz;
    v_cell bigint;
begin
    perform pg_advisory_xact_lock(llmqueue.lock_space(), hashtext(p_model));
    v_now := coalesce(p_now, clock_timestamp());
    v_cell := floor(extract(epoch from v_now) / 0.25)::bigint;
    delete from llmqueue.ledger_grant g where g.model = p_model and (g.cell >= v_cell or g.granted_at > v_now);
    delete from llmqueue.ledger_cell c where c.model = p_model and c.cell > v_cell;
    -- the cell that was open and was deleted or outlived needs no closing: the filling row outweighs it
    delete from llmqueue.ledger_minute m where m.model = p_model and m.minute > v_cell / 240;
    insert into llmqueue.ledger_cell (model, cell, calls) values (p_model, v_cell, v_full);
    insert into llmqueue.ledger_grant (model, cell, calls, level, granted_at)
    values (p_model, v_cell, 0, 0, v_now);
end
$$;
