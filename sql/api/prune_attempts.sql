-- What it does: deletes up to p_limit ended attempts that are older than p_keep.
-- Returns: how many attempts were deleted.
-- Locks: the rows.
-- Why: the log is kept for LLMQUEUE_KEEP_ATTEMPTS; fences grow with time, so the oldest attempts come first in the
--   primary key. The newest attempt stays: end_of_epoch() compares fences with it.
create or replace function llmqueue.prune_attempts(p_keep interval, p_limit integer)
returns integer language plpgsql volatile
security definer set search_path = pg_catalog, pg_temp as $$
declare
    v_count integer;
begin
    with oldest as materialized (
        select x.fence, x.granted_at, x.ended_at from llmqueue.attempt x order by x.fence limit p_limit
    )
    delete from llmqueue.attempt a using oldest o
     where a.fence = o.fence and o.fence < (select max(x.fence) from llmqueue.attempt x)
       and o.ended_at is not null and o.granted_at < llmqueue_internal.clock() - p_keep;
    get diagnostics v_count = row_count;
    return v_count;
end
$$;
comment on function llmqueue.prune_attempts is
    'Deletes a bounded number of old attempts. For workers.';
