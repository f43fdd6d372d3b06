-- What it does: says for each model that could take a ready task what it waits for, and how many tasks are ahead of
--   it.
-- Returns: a row per model; one row without a model when the task is not due, past its deadline, or no model may take
--   it.
-- Locks: none.
-- Why: a part of why(). The place in the task's own lane is counted once, up to 10,000 tasks; in the other lanes of
--   its models (a model takes the highest priority of all its lanes) up to 2,000 in all. With a million ready tasks
--   that takes some 20 ms.
create or replace function llmqueue_internal.why_ready(p_task_id llmqueue.task_id, p_now timestamptz)
returns table (reason text, until_at timestamptz, model text, detail jsonb) language plpgsql stable as $$
declare
    v_cap constant integer := 10000;
    v_cap_of_others constant integer := 2000;
    v_task record;
    v_models text[];
    v_model text;
    v_why record;
    v_lane record;
    v_turns record;
    v_others record;
    v_lanes integer;
    v_place jsonb;
    v_ahead bigint;
begin
    select t.lane, t.rank::bigint as rank, t.due_at, t.deadline_at into strict v_task
      from llmqueue.task t where t.id = p_task_id;
    if v_task.deadline_at <= p_now or v_task.due_at > p_now then
        return query select case when v_task.deadline_at <= p_now then 'expired' else 'not_due' end,
            case when (v_task.deadline_at <= p_now) is not true then v_task.due_at end, nullif(v_task.lane, ''),
            jsonb_strip_nulls(jsonb_build_object('deadline_at', v_task.deadline_at));
        return;
    end if;
    v_models := llmqueue_internal.lane_models(v_task.lane);
    if cardinality(v_models) = 0 then
        return query select 'no_model', null::timestamptz, null::text, jsonb_strip_nulls(jsonb_build_object(
            'lane', v_task.lane,
            'weightless', (select min(c.model) from llmqueue.model_config c
                            where llmqueue_internal.is_enabled(c) and c.weight = 0)));
        return;
    end if;

    select * into strict v_lane from llmqueue_internal.count_before(v_task.lane, p_task_id, v_cap, p_now);
    select * into strict v_turns
      from llmqueue_internal.count_turns(p_task_id, greatest(1000, v_cap - v_lane.higher)::integer, p_now);
    v_ahead := v_lane.higher + v_turns.own + v_turns.turns;
    v_place := jsonb_build_object(
        'lane', v_task.lane, 'priority', v_task.rank, 'ahead', least(v_ahead, v_cap),
        'ahead_is_exact', v_ahead <= v_cap and v_lane.higher_is_exact and v_turns.turns_is_exact,
        'higher', v_lane.higher, 'higher_is_exact', v_lane.higher_is_exact,
        'own', v_turns.own, 'own_is_exact', v_turns.own_is_exact,
        'users', v_turns.users, 'turns', v_turns.turns, 'turns_is_exact', v_turns.turns_is_exact,
        'deadline_at', v_task.deadline_at);
    v_lanes := (select count(*)::integer
                  from unnest(v_models) m(model)
                 cross join lateral unnest(llmqueue_internal.model_lanes(m.model)) l(lane));
    foreach v_model in array v_models loop
        select * into strict v_why from llmqueue_internal.why_model(v_model, p_task_id, p_now);
        select coalesce(sum(b.higher), 0)::bigint as higher,
               coalesce(bool_and(b.higher_is_exact), true) as higher_is_exact,
               coalesce(sum(b.older), 0)::bigint + v_lane.older as older,
               coalesce(bool_and(b.older_is_exact), true) and v_lane.older_is_exact as older_is_exact
          into strict v_others
          from unnest(llmqueue_internal.model_lanes(v_model)) l(lane)
         cross join lateral llmqueue_internal.count_before(
                   l.lane, p_task_id, greatest(10, v_cap_of_others / v_lanes), p_now) b
         where l.lane <> v_task.lane;
        reason := coalesce(v_why.reason, case when v_ahead + v_others.higher > 0 then 'behind' end);
        until_at := v_why.until_at;
        model := v_model;
        detail := jsonb_strip_nulls(v_place || v_why.detail || jsonb_build_object(
            'other_lanes', v_others.higher, 'other_lanes_is_exact', v_others.higher_is_exact,
            'older', v_others.older, 'older_is_exact', v_others.older_is_exact));
        return next;
    end loop;
end
$$;
