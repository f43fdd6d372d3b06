-- What it does: says whether an error of an UPDATE is about the row (an owner's trigger, a CHECK, a value too long).
-- Returns: false for errors that another try may cure: connection, resources, shutdown, locks, cancelled statements.
--   For errors that the table may cause as well as the row (a missing function or right, a wrong state) p_is_alone:
--   whether other rows went through where this one failed.
-- Locks: none.
-- Why: a row is quarantined for its own fault only. If all rows fail alike, somebody has broken the table, and waiting
--   until that is mended loses nothing.
create or replace function llmqueue_internal.is_row_fault(p_sqlstate text, p_is_alone boolean)
returns boolean language sql immutable parallel safe as $$
    select case when left(p_sqlstate, 2) in ('08', '40', '53', '57', '58', 'LQ') or p_sqlstate = '55P03' then false
                when left(p_sqlstate, 2) in ('25', '28', '42', '55', 'F0', 'XX') then p_is_alone
                else true end
$$;
