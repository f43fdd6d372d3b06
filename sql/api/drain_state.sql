-- What it does: says whether any task can still run for which a draining worker of these models (null: all) should
--   wait.
-- Returns: is_done; if it is, a row per lane and reason for the tasks that cannot run: up to 5 keys, and how many
--   (counted up to 10,000).
-- Locks: none.
-- Why: --drain ends when nothing can run. It waits for the tasks of other workers: if such a worker dies, its tasks
--   become ready again. A model in cooldown, or one that has used up its day, can run: that ends with time.
create or replace function llmqueue.drain_state(p_models text[], p_wait_s double precision)
returns table (is_done boolean, lane text, reason text, tasks bigint, examples text[]) language plpgsql stable
security definer set search_path = pg_catalog, pg_temp
set jit = off set enable_seqscan = off set enable_bitmapscan = off as $$
declare
    v_enabled text[] := array(select c.model from llmqueue.model_config c
                               where llmqueue_internal.is_enabled(c)
                                 and (p_models is null or c.model = any (p_models)));
    v_open text[] := v_enabled
        || array(select p.pool from llmqueue.pool_member p where p.model = any (v_enabled))
        || array(select '' from llmqueue.model_config c where c.model = any (v_enabled) and c.weight > 0 limit 1);
    v_horizon constant timestamptz := llmqueue_internal.clock() + make_interval(secs => p_wait_s);
    v_cap constant integer := 10000;
    v_lanes text[];
    v_can_run boolean;
begin
    with recursive lanes as (
        (select t.lane from llmqueue.task t where t.is_ready order by t.lane limit 1)
        union all
        select (select t.lane from llmqueue.task t where t.is_ready and t.lane > lanes.lane order by t.lane limit 1)
          from lanes where lanes.lane is not null
    )
    select coalesce(array_agg(l.lane), '{}') into v_lanes from lanes l where l.lane is not null;
    v_can_run := exists (select from llmqueue.attempt a where a.ended_at is null)
        or exists (select from unnest(v_lanes) l(lane)
                    cross join lateral (select from llmqueue.task t
                                         where t.is_ready and t.lane = l.lane and t.due_at <= v_horizon
                                           and (select true from llmqueue.quarantine s where s.task_id = t.id) is null
                                         limit 1) t
                    where l.lane = any (v_open))
        or exists (select from llmqueue.task t
                    where t.is_delayed and t.due_at <= v_horizon
                      and (select true from llmqueue.quarantine s where s.task_id = t.id) is null
                      and t.lane = any (v_open));
    if v_can_run then
        return query select false, null::text, null::text, null::bigint, null::text[];
        return;
    end if;
    return query
        select true, x.lane, x.reason, count(*), (array_agg(x.id::text))[1:5]
          from ((select t.lane, t.id,
                        case when t.lane = any (v_open) then 'due later'
                             when t.lane = '' then 'no model can take it'
                             when exists (select from llmqueue.pool_member p where p.pool = t.lane)
                                  then 'no model of its pool can take it'
                             when exists (select from llmqueue.model_config c where c.model = t.lane)
                                  then 'its model is paused or not served here'
                             else 'its model is not configured' end as reason
                   from unnest(v_lanes) l(lane)
                  cross join lateral (select y.lane, y.id from llmqueue.task y
                                       where y.is_ready and y.lane = l.lane
                                         and (select true from llmqueue.quarantine s where s.task_id = y.id) is null
                                       limit v_cap) t)
                union all
                (select t.lane, t.id, 'due later' from llmqueue.task t
                  where t.is_delayed and (select true from llmqueue.quarantine s where s.task_id = t.id) is null
                  limit v_cap)
                union all
                (select '', s.task_id, 'quarantined' from llmqueue.quarantine s limit v_cap)) x
         group by x.lane, x.reason order by x.lane, x.reason;
    if not found then
        return query select true, null::text, null::text, null::bigint, null::text[];
    end if;
end
$$;
comment on function llmqueue.drain_state is
    'Says whether a drain is done, and which tasks cannot run. For workers.';
