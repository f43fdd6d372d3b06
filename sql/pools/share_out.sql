-- What it does: shares the waiting tasks of each pool that several of the models could take out among these models, by
--   weight; with p_is_hot the hot tasks alone.
-- Returns: {lane: {models: {model: {tasks, weight}}, is_more}}; without lanes that only one of them takes from.
-- Locks: none.
-- Why: whose turn it is comes from what each model was served before, divided by its weight (p_served, kept by the
--   worker: a row of a table would be a hot one, and serialise the pool's models). At most p_slots tasks are counted;
--   of hot tasks with cursors only one, since there is no cursor to count from.
create or replace function llmqueue_internal.share_out(
    p_models text[], p_slots integer, p_served jsonb, p_cursors llmqueue_internal.resume_cursor[] default null,
    p_is_hot boolean default false)
returns jsonb language plpgsql stable as $$
declare
    v_pool record;
    v_waiting integer;
    v_shares jsonb := '{}'::jsonb;
begin
    if coalesce(cardinality(p_models), 0) < 2 or p_slots <= 0 then
        return v_shares;
    end if;
    for v_pool in
        select member.lane, array_agg(member.model) as models, array_agg(member.weight) as weights
          from (select '' as lane, c.model, c.weight from llmqueue.model_config c
                 where c.model = any (p_models) and llmqueue_internal.is_enabled(c) and c.weight > 0
                union all
                select m.pool, m.model, m.weight from llmqueue.pool_member m
                 where m.model = any (p_models) and m.pool <> m.model
                   and exists (select from llmqueue.model_config c
                               where c.model = m.model and llmqueue_internal.is_enabled(c))) member
         where not exists (select from llmqueue.model_state s
                           where s.model = member.model and s.cooldown_until is not null)
         group by member.lane having count(*) > 1
    loop
        if not p_is_hot then
            select count(*)::integer into v_waiting
              from llmqueue_internal.first_waiting(v_pool.lane, p_cursors) first
             cross join lateral (select from llmqueue.task t
                                  where t.is_ready and t.lane = v_pool.lane
                                    and (t.waiting_since, t.id) >= (first.waiting_since, first.task_id)
                                  order by t.waiting_since limit p_slots) waiting;
        elsif p_cursors is null then
            select count(*)::integer into v_waiting
              from (select from llmqueue.task t
                     where t.is_ready and t.lane = v_pool.lane and t.rank >= llmqueue_internal.hot_priority()
                     order by t.rank desc limit p_slots) waiting;
        else
            v_waiting := (llmqueue_internal.next_priority(v_pool.lane, 9223372036854775807, p_cursors,
                                                          llmqueue_internal.hot_priority()) is not null)::integer;
        end if;
        continue when v_waiting = 0;
        with turn as materialized (
            select other.model
              from unnest(v_pool.models, v_pool.weights) other(model, weight)
             cross join lateral (select coalesce((p_served #>> array[v_pool.lane, other.model])::double precision, 0)
                                 as before) served
             cross join generate_series(1, v_waiting) task(no)
             order by served.before + task.no / other.weight, other.model
             limit v_waiting
        ), counted as (
            select turn.model, count(*) as tasks from turn group by turn.model
        )
        select v_shares || jsonb_build_object(v_pool.lane, jsonb_build_object(
                   'is_more', v_waiting = p_slots,
                   'models', jsonb_object_agg(m.model,
                                              jsonb_build_object('weight', m.weight, 'tasks', coalesce(c.tasks, 0)))))
          into v_shares
          from unnest(v_pool.models, v_pool.weights) m(model, weight)
          left join counted c on c.model = m.model;
    end loop;
    return v_shares;
end
$$;
