-- What it does: writes what was taken under a budget into the model's ledger, and closes the open cell if its time is
--   over.
-- Returns: nothing.
-- Locks: none; the caller holds the model's advisory lock.
-- Why: only inserts (design I2). A cell is closed by the first grant of a later one, so at most one cell per model is
--   open. `turn` counts the grants since the oldest task had its turn: it has one in ten.
create or replace function llmqueue_internal.charge(
    p_budget llmqueue_internal.budget, p_calls integer, p_hot_calls integer, p_tokens bigint, p_output_tokens bigint,
    p_aged integer)
returns void language plpgsql volatile as $$
begin
    if p_budget.open_cell < p_budget.cell
       and (p_budget.open_calls <> 0 or p_budget.open_tokens <> 0 or p_budget.open_output_tokens <> 0) then
        insert into llmqueue.ledger_cell (model, cell, calls, hot_calls, tokens, output_tokens)
        values (p_budget.model, p_budget.open_cell, p_budget.open_calls, p_budget.open_hot_calls, p_budget.open_tokens,
                p_budget.open_output_tokens);
    end if;
    insert into llmqueue.ledger_grant (model, cell, calls, hot_calls, tokens, output_tokens, level, token_level,
                                       granted_at, turn, hot_at, open_from)
    values (p_budget.model, p_budget.cell, p_calls, p_hot_calls, p_tokens, p_output_tokens, p_budget.level - p_calls,
            coalesce(p_budget.token_level - p_tokens, 0), p_budget.granted_at,
            least(19, greatest(0, p_budget.turn + p_calls - 10 * p_aged)),
            case when p_hot_calls > 0 then p_budget.granted_at else p_budget.hot_at end, p_budget.open_from);
end
$$;
