-- What it does: says which lanes a model takes tasks from now: its own, those of its pools, and the default pool's ('').
-- Returns: a fresh taking: the lanes that have a ready task, in random order, and how many each may give.
-- Locks: none.
-- Why: an empty lane should not cost the model's lock; hot tasks are looked for alone while only slots for them are free: those
--   whose run_at is ahead count. Where marks are needed the first are set here, before the model's lock is taken. Lanes take
--   turns inside a priority, and the order is drawn anew for each claim, so neither a pool starves the tasks of one model nor
--   they the pool. p_shares bounds what is taken from a pool while other models may take of it too; null: no bound.
create or replace function llmqueue.lanes_of(
    p_model text, p_shares jsonb, p_slots integer, p_hot_slots integer, p_users jsonb,
    p_now timestamptz, p_marks llmqueue.mark[] default null)
returns llmqueue.taking language plpgsql volatile as $$
declare
    v_taking llmqueue.taking;
    v_first llmqueue.mark[];
begin
    select coalesce(array_agg(x.lane order by x.turn), '{}'), coalesce(array_agg(x.most order by x.turn), '{}'),
           case when p_marks is not null then array_agg((x.lane, null, null, first.waiting_since, first.task_id, 0)::llmqueue.mark)
                                             filter (where first.waiting_since is not null) end
      into v_taking.lanes, v_taking.most, v_first
      from (select served.lane, random() as turn,
                   coalesce((p_shares #>> array[served.lane, 'models', p_model, 'tasks'])::integer, p_slots + p_hot_slots) as most
              from (select p_model as lane
                    union all
                    select m.pool from llmqueue.pool_member m where m.model = p_model and m.pool <> p_model
                    union all
                    select '' from llmqueue.model_config c where c.model = p_model and c.weight > 0) served) x
      left join lateral llmqueue.first_waiting(x.lane, p_marks) first on p_slots > 0
     where x.most > 0 and case when p_slots > 0 then first.waiting_since <= coalesce(p_now, clock_timestamp())
                               else llmqueue.next_rank(x.lane, 9223372036854775807, p_marks, 100) is not null end;
    if p_marks is not null then
        v_taking.marks := llmqueue.marks_after(p_marks, v_first);
        v_first := array(select (l.lane, best.rank, first.user_key, first.due_at, first.task_id, 0)::llmqueue.mark
                           from unnest(v_taking.lanes) l(lane)
                          cross join lateral (select llmqueue.next_rank(l.lane, 9223372036854775807, null) as rank offset 0) best
                          cross join lateral llmqueue.next_user(l.lane, best.rank, p_users ->> (best.rank || ' ' || l.lane), null) first
                          where not exists (select from unnest(v_taking.marks) m where m.lane = l.lane and m.rank is not null)
                            and first.due_at <= coalesce(p_now, clock_timestamp()));
        v_taking.marks := llmqueue.marks_after(v_taking.marks, v_first);
    end if;
    v_taking.users := p_users;
    v_taking.slots := p_slots;
    v_taking.hot_slots := p_hot_slots;
    v_taking.rows := array[]::llmqueue.leased[];
    v_taking.calls := 0;
    v_taking.hot_calls := 0;
    v_taking.aged := 0;
    v_taking.tokens := 0;
    v_taking.output_tokens := 0;
    v_taking.is_blocked := false;
    v_taking.is_cut := false;
    return v_taking;
end
$$;
