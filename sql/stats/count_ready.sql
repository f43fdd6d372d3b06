-- What it does: counts the ready tasks of a lane: exactly up to 10,000, beyond that by an estimate.
-- Returns: one row: tasks, is_estimate, and since when the oldest has been due (null when that is not known).
-- Locks: none.
-- Why: no listing may count a backlog of millions (I19). The oldest task is found by one probe of the index
--   llmqueue_oldest, whatever its priority. The count reads the same index, whose order is that of most tables'
--   pages. The estimate is made by hand, since the planner does not use the statistics of a partial index: the number
--   of entries at the last (auto)analyze, scaled by the size that the index llmqueue_ready has now, times the lane's
--   share. SECURITY DEFINER: whoever may read the views need not read the tasks. The planner settings are here and
--   not on an API function, because views call this function.
create or replace function llmqueue_internal.count_ready(
    p_lane text, out tasks bigint, out is_estimate boolean, out oldest_at timestamptz)
language plpgsql stable security definer set search_path = pg_catalog, pg_temp
set jit = off set enable_seqscan = off set enable_bitmapscan = off set enable_sort = off as $$
declare
    v_cap constant integer := 10000;
begin
    oldest_at := (select t.waiting_since from llmqueue.task t
                   where t.is_ready and t.lane = p_lane
                     and t.waiting_since > '-infinity' and t.waiting_since < 'infinity'
                   order by t.waiting_since limit 1);
    select count(*) into tasks
      from (select from llmqueue.task t
             where t.is_ready and t.lane = p_lane order by t.waiting_since limit v_cap + 1) head;
    is_estimate := tasks > v_cap;
    if not is_estimate then
        -- a task in quarantine does not wait for a model; `status` counts it apart
        tasks := tasks - (select count(*)
                            from (select s.task_id from llmqueue.quarantine s limit v_cap) q
                           cross join lateral (select from llmqueue.task t
                                                where t.id = q.task_id and t.is_ready and t.lane = p_lane limit 1) t);
        return;
    end if;
    tasks := greatest(tasks, (   -- null before the first ANALYZE
        select (ready.entries * case
                   when p_lane = any (common.lanes) then common.shares[array_position(common.lanes, p_lane)]
                   else greatest(0, 1 - (select sum(x.share) from unnest(common.shares) x(share)))
                        / greatest(1, ready.distinct_lanes - cardinality(common.lanes)) end)::bigint
          from llmqueue.mapping m
         cross join lateral (
               select i.reltuples * pg_relation_size(i.oid) / greatest(i.relpages, 1)
                      / current_setting('block_size')::integer as entries,
                      case when s.n_distinct < 0 then -s.n_distinct * i.reltuples
                           else s.n_distinct end as distinct_lanes,
                      s.most_common_vals::text::text[] as lanes, s.most_common_freqs as shares
                 from pg_class i
                 join pg_attribute a on a.attrelid = i.oid and a.attnum = 1
                 join pg_stats s on s.schemaname = m.table_schema and s.tablename = i.relname
                                and s.attname = a.attname
                where i.relname = 'llmqueue_ready'
                  and i.relnamespace = to_regnamespace(quote_ident(m.table_schema))) ready
         cross join lateral (select coalesce(ready.lanes, '{}') as lanes,
                                    coalesce(ready.shares, '{}') as shares) common));
end
$$;
