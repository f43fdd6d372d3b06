-- What it does: says how many calls each of a model's shorter windows allows at the moment of the budget.
-- Returns: a row per entry of burst_windows: seconds, and free: share of rpm (at least 1) − calls in those seconds +
--   guard.
-- Locks: none; the caller holds the model's advisory lock.
-- Why: some providers judge by 1 s or 10 s. The cells are those of the ledger, so a window of w seconds is used to w /
--   (w + guard + 0.25) at most.
create or replace function llmqueue_internal.burst_headroom(p_budget llmqueue_internal.budget)
returns table (seconds double precision, free bigint) language plpgsql stable as $$
declare
    v_short record;
    v_first bigint;
begin
    if (p_budget.configured).burst_windows is null then
        return;
    end if;
    for v_short in
        select w.key::double precision as seconds, w.value::double precision as share
          from jsonb_each_text((p_budget.configured).burst_windows) w
    loop
        seconds := v_short.seconds;
        v_first := llmqueue_internal.cell_of(p_budget.granted_at, seconds + p_budget.span_s - p_budget.window_s);
        free := greatest(1, floor(p_budget.rpm * v_short.share))::bigint
                - (select coalesce(sum(c.calls), 0) from llmqueue.ledger_cell c
                   where c.model = p_budget.model and c.cell >= v_first)
                - case when p_budget.open_cell >= v_first then p_budget.open_calls else 0 end;
        return next;
    end loop;
end
$$;
