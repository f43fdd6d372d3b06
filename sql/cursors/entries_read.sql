-- What it does: says how many entries this transaction has read of the two indexes that tasks are claimed from, dead
--   entries among them.
-- Returns: their number, with those of earlier transactions that are not reported yet: only differences mean anything.
-- Locks: none.
-- Why: it tells many dead entries from many live ones. 0 where track_counts is off, or while the indexes are missing.
--   The planner puts the expression in place of the call: a query for both took longer than many a step of a claim.
create or replace function llmqueue_internal.entries_read(p_indexes oid[])
returns bigint language sql volatile as $$
    select coalesce(pg_stat_get_xact_tuples_returned(p_indexes[1]), 0)
         + coalesce(pg_stat_get_xact_tuples_returned(p_indexes[2]), 0)
$$;
