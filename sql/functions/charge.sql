-- What it does: writes a grant of p_calls calls into the model's ledger, and closes the cell before it if time went on.
-- Returns: nothing.
-- Locks: none; the caller holds the model's advisory lock.
-- Why: only inserts. A cell is closed by the first grant of a later one, so at most one cell per model is open.
create or replace function llmqueue.charge(
    p_model text, p_calls integer, p_cell bigint, p_level double precision, p_granted_at timestamptz,
    p_open_cell bigint, p_open_calls bigint)
returns void language plpgsql volatile as $$
begin
    if p_open_cell < p_cell and p_open_calls <> 0 then
        insert into llmqueue.ledger_cell (model, cell, calls) values (p_model, p_open_cell, p_open_calls);
    end if;
    insert into llmqueue.ledger_grant (model, cell, calls, level, granted_at)
    values (p_model, p_cell, p_calls, p_level, p_granted_at);
end
$$;
