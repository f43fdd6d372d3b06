-- What it does: estimates the ready tasks of a lane from the statistics of the index llmqueue_ready.
-- Returns: a number of tasks; null before the first ANALYZE.
-- Locks: none.
-- Why: read by hand, since the planner does not use the statistics of a partial index. The number of entries of the last
--   (auto)analyze is scaled by the size that the index has now.
create or replace function llmqueue_internal.estimate_ready(p_lane text)
returns bigint language sql stable security definer set search_path = pg_catalog, pg_temp as $$
    select (ready.entries * case
                when p_lane = any (common.lanes) then common.shares[array_position(common.lanes, p_lane)]
                else greatest(0, 1 - (select sum(x.share) from unnest(common.shares) x(share)))
                     / greatest(1, ready.distinct_lanes - cardinality(common.lanes)) end)::bigint
      from llmqueue.mapping m
     cross join lateral (
           select i.reltuples * pg_relation_size(i.oid) / greatest(i.relpages, 1) / current_setting('block_size')::integer as entries,
                  case when s.n_distinct < 0 then -s.n_distinct * i.reltuples else s.n_distinct end as distinct_lanes,
                  s.most_common_vals::text::text[] as lanes, s.most_common_freqs as shares
             from pg_class i
             join pg_attribute a on a.attrelid = i.oid and a.attnum = 1
             join pg_stats s on s.schemaname = m.table_schema and s.tablename = i.relname and s.attname = a.attname
            where i.relname = 'llmqueue_ready' and i.relnamespace = to_regnamespace(quote_ident(m.table_schema))) ready
     cross join lateral (select coalesce(ready.lanes, '{}') as lanes, coalesce(ready.shares, '{}') as shares) common
$$;
