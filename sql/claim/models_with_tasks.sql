-- What it does: finds those of several models that have a task to take now; only hot tasks count while no other slots
--   are free.
-- Returns: a part of p_models.
-- Locks: none.
-- Why: one look at each lane instead of one for each model and lane: of ten models that share a pool, nine have nothing
--   to do for a single task. p_shares: as in choose_lanes(), which looks again where there is something. Without
--   cursors this function reads the lanes itself, as first_waiting() would: a call of it for each lane was more than
--   half of the work.
create or replace function llmqueue_internal.models_with_tasks(
    p_models text[], p_shares jsonb, p_slots integer, p_now timestamptz, p_cursors llmqueue_internal.resume_cursor[])
returns text[] language plpgsql stable as $$
begin
    return array(
        with served as materialized (
            select m.model, m.model as lane from unnest(p_models) m(model)
            union all
            select p.model, p.pool from llmqueue.pool_member p where p.model = any (p_models) and p.pool <> p.model
            union all
            select c.model, '' from llmqueue.model_config c where c.model = any (p_models) and c.weight > 0
        ), open as materialized (
            select s.model, s.lane from served s
             where coalesce((p_shares #>> array[s.lane, 'models', s.model, 'tasks'])::integer, 1) > 0
        ), ready as materialized (
            select l.lane
              from (select distinct o.lane from open o) l
             cross join lateral (
                 select case when p_slots <= 0 then
                                 llmqueue_internal.next_priority(l.lane, 9223372036854775807, p_cursors,
                                                                 llmqueue_internal.hot_priority()) is not null
                             when p_cursors is not null then (
                                 llmqueue_internal.first_waiting(l.lane, p_cursors)).waiting_since <= p_now
                             else (select t.waiting_since from llmqueue.task t
                                    where t.is_ready and t.lane = l.lane
                                      and (select true from llmqueue.quarantine s where s.task_id = t.id) is null
                                    order by t.waiting_since, t.id limit 1) <= p_now end as has offset 0) x
             where x.has
        )
        select distinct o.model from open o where o.lane in (select r.lane from ready r));
end
$$;
