-- What it does: says how many entries this transaction has read of the two indexes that tasks are claimed from, dead
--   entries among them.
-- Returns: their number, with those of earlier transactions that are not reported yet: only differences mean anything.
-- Locks: none.
-- Why: it tells a thicket of dead entries from many live ones. 0 where track_counts is off, or while the indexes are
--   missing. By name alone: of another table's indexes a claim reads none.
create or replace function llmqueue_internal.entries_read()
returns bigint language plpgsql volatile as $$
begin
    return (select coalesce(sum(pg_stat_get_xact_tuples_returned(c.oid)), 0)::bigint
              from pg_class c where c.relname in ('llmqueue_ready', 'llmqueue_oldest') and c.relkind = 'i');
end
$$;
