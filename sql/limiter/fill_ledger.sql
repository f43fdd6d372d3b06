-- What it does: makes the model's ledger full as of now, so that nothing is granted for one window.
-- Returns: nothing.
-- Locks: the model's advisory lock, which the caller may hold already.
-- Why: after a clock has stepped by more than can be held, nobody knows what was sent in the last minute: one quiet
--   minute rather than one overshoot (I7). Rows in the future of the new clock are dropped: grants first, which waits
--   for a refund that is under way, then cells and refunds.
create or replace function llmqueue_internal.fill_ledger(p_model text)
returns void language plpgsql volatile as $$
declare
    v_full constant integer := llmqueue_internal.ledger_full();
    v_full_tokens constant bigint := 1000000000000000;
    v_open record;
    v_dropped record;
    v_now timestamptz;
    v_cell bigint;
begin
    perform pg_advisory_xact_lock(llmqueue_internal.lock_space(), hashtext(p_model));
    v_now := llmqueue_internal.clock();
    v_cell := llmqueue_internal.cell_of(v_now);
    -- the day's limits go on counting what is dropped here, and the open cell, which nobody closes any more
    select coalesce(sum(g.calls), 0)::bigint as calls, coalesce(sum(g.tokens), 0)::bigint as tokens,
           coalesce(sum(g.output_tokens), 0)::bigint as output_tokens
      into v_open
      from llmqueue.ledger_grant g
     where g.model = p_model and g.cell = (select max(last.cell) from llmqueue.ledger_grant last
                                           where last.model = p_model);
    delete from llmqueue.ledger_grant g where g.model = p_model and (g.cell >= v_cell or g.granted_at > v_now);
    with cell as (
        delete from llmqueue.ledger_cell c
         where c.model = p_model and c.cell > v_cell returning c.calls, c.tokens, c.output_tokens
    ), minute as (
        delete from llmqueue.ledger_minute m
         where m.model = p_model and m.minute > v_cell / 240 returning m.calls, m.tokens, m.output_tokens
    )
    select coalesce(sum(x.calls), 0)::bigint as calls, coalesce(sum(x.tokens), 0)::bigint as tokens,
           coalesce(sum(x.output_tokens), 0)::bigint as output_tokens
      into v_dropped
      from (select * from cell where cell.calls < v_full union all select * from minute) x;
    insert into llmqueue.ledger_minute as m (model, minute, calls, tokens, output_tokens)
    values (p_model, v_cell / 240, v_open.calls + v_dropped.calls, v_open.tokens + v_dropped.tokens,
            v_open.output_tokens + v_dropped.output_tokens)
    on conflict (model, minute) do update
       set calls = m.calls + excluded.calls, tokens = m.tokens + excluded.tokens,
           output_tokens = m.output_tokens + excluded.output_tokens;
    insert into llmqueue.ledger_cell (model, cell, calls, tokens, output_tokens)
    values (p_model, v_cell, v_full, v_full_tokens, v_full_tokens);
    insert into llmqueue.ledger_grant (model, cell, calls, level, granted_at)
    values (p_model, v_cell, 0, 0, v_now);
end
$$;
