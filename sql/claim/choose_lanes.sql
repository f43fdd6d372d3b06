-- What it does: finds the lanes that a model can take tasks from now: its own, those of its pools, and the default
--   pool's ('').
-- Returns: an empty batch: the lanes that have a ready task, in random order, and how many tasks each may give.
-- Locks: none.
-- Why: an empty lane should not cost the model's lock. While only slots for hot tasks are free, only hot tasks count,
--   those whose run_at is ahead too. Where cursors are needed the first are set here, before the model's lock is taken.
--   Lanes take turns inside a priority, and the order is drawn anew for each claim, so neither a pool starves the tasks
--   of one model nor they the pool. p_shares bounds what is taken from a pool while other models may take of it too;
--   null: no bound. Without cursors this function reads the lanes itself, as first_waiting() would: the calls of it
--   were most of the work.
create or replace function llmqueue_internal.choose_lanes(
    p_model text, p_shares jsonb, p_slots integer, p_hot_slots integer, p_users jsonb,
    p_now timestamptz, p_cursors llmqueue_internal.resume_cursor[] default null)
returns llmqueue_internal.batch language plpgsql volatile as $$
declare
    v_batch llmqueue_internal.batch;
    v_best constant bigint := 9223372036854775807;
    v_first llmqueue_internal.resume_cursor[];
begin
    select coalesce(array_agg(x.lane order by x.turn), '{}'), coalesce(array_agg(x.most order by x.turn), '{}'),
           p_users, p_slots, p_hot_slots, '{}', 0, 0, 0, 0, 0, false, false
      into v_batch.lanes, v_batch.most, v_batch.users, v_batch.slots, v_batch.hot_slots, v_batch.rows, v_batch.calls,
           v_batch.hot_calls, v_batch.aged, v_batch.tokens, v_batch.output_tokens, v_batch.is_blocked, v_batch.has_more
      from (select served.lane, random() as turn,
                   coalesce((p_shares #>> array[served.lane, 'models', p_model, 'tasks'])::integer,
                            p_slots + p_hot_slots) as most
              from (select p_model as lane
                    union all
                    select m.pool from llmqueue.pool_member m where m.model = p_model and m.pool <> p_model
                    union all
                    select '' from llmqueue.model_config c where c.model = p_model and c.weight > 0) served) x
     where x.most > 0
       and case when p_slots <= 0 then
                    llmqueue_internal.next_priority(x.lane, v_best, p_cursors,
                                                    llmqueue_internal.hot_priority()) is not null
                when p_cursors is not null then
                    (llmqueue_internal.first_waiting(x.lane, p_cursors)).waiting_since <= p_now
                else (select t.waiting_since from llmqueue.task t
                       where t.is_ready and t.lane = x.lane
                         and (select true from llmqueue.quarantine s where s.task_id = t.id) is null
                       order by t.waiting_since, t.id limit 1) <= p_now end;
    if p_cursors is not null then
        if p_slots > 0 then
            v_first := array(select (l.lane, null, null, first.waiting_since, first.task_id, 0)
                                    ::llmqueue_internal.resume_cursor
                               from unnest(v_batch.lanes) l(lane)
                              cross join lateral llmqueue_internal.first_waiting(l.lane, p_cursors) first
                              where first.waiting_since is not null);
        end if;
        v_batch.cursors := llmqueue_internal.advance_cursors(p_cursors, v_first);
        v_first := array(select (l.lane, best.rank, first.user_key, first.due_at, first.task_id, 0)
                                ::llmqueue_internal.resume_cursor
                           from unnest(v_batch.lanes) l(lane)
                          cross join lateral (select llmqueue_internal.next_priority(l.lane, v_best, null)
                                              as rank offset 0) best
                          cross join lateral llmqueue_internal.next_user(
                                         l.lane, best.rank, p_users ->> (best.rank || ' ' || l.lane), null) first
                          where not exists (select from unnest(v_batch.cursors) m
                                            where m.lane = l.lane and m.rank is not null)
                            and first.due_at <= p_now);
        v_batch.cursors := llmqueue_internal.advance_cursors(v_batch.cursors, v_first);
    end if;
    return v_batch;
end
$$;
