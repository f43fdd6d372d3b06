-- What it does: names the length of a cell of the ledger, in seconds.
-- Returns: 0.25.
-- Locks: none.
-- Why: the ledger counts calls and tokens by cells of that length. The planner puts the constant in place of the call.
create or replace function llmqueue_internal.cell_s()
returns double precision language sql immutable parallel safe as $$ select 0.25::double precision $$;
