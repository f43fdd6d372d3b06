-- What it does: says which cell of the ledger a moment lies in, or the moment p_before_s seconds earlier.
-- Returns: the number of the cell, counted since 1970.
-- Locks: none.
-- Why: whoever writes or reads the ledger must count cells in the same way. Numeric, since a double would round a
--   moment just before a cell's end into the next one. The planner puts the expression in place of the call; of an
--   IMMUTABLE function it would not, since extract() is STABLE.
create or replace function llmqueue_internal.cell_of(p_at timestamptz, p_before_s double precision default 0)
returns bigint language sql stable parallel safe as $$
    select floor((extract(epoch from p_at) - p_before_s::numeric) / llmqueue_internal.cell_s()::numeric)::bigint
$$;
