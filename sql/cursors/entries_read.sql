-- What it does: says how many entries this transaction has read of the indexes that tasks are claimed from, dead ones
--   too.
-- Returns: their number, with those of earlier transactions that are not reported yet: only differences mean anything.
-- Locks: none.
-- Why: it tells many dead entries from many live ones. 0 where track_counts is off, or while the indexes are missing.
--   claim() finds the indexes once by their names; a query here would cost as much as a step of the claim.
create or replace function llmqueue_internal.entries_read(p_indexes oid[])
returns bigint language plpgsql volatile as $$
declare
    v_index oid;
    v_sum bigint := 0::bigint;
begin
    foreach v_index in array p_indexes loop
        v_sum := v_sum + coalesce(pg_stat_get_xact_tuples_returned(v_index), 0::bigint);
    end loop;
    return v_sum;
end
$$;
