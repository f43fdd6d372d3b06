-- What it does: says whether an error of an UPDATE is about the row (an owner's trigger, a CHECK, a value too long).
-- Returns: false for what another try may cure: connection, resources, shutdown, locks, cancelled statements, rights.
-- Locks: none.
-- Why: only a row's own fault may set it aside.
create or replace function llmqueue.is_fault_of_row(p_sqlstate text)
returns boolean language sql immutable parallel safe as $$
    select left(p_sqlstate, 2) not in ('08', '25', '28', '40', '42', '53', '55', '57', '58', 'F0', 'XX', 'LQ')
$$;
