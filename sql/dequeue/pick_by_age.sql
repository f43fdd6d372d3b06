-- What it does: locks up to p_wanted of the oldest ready tasks of several lanes, whatever their priority and user.
-- Returns: one row: picked, in order; seen: how many there were to lock; cursors: the first that was locked of each
--   lane, and of each user and priority in it, if cursors are wanted; has_more is false and looked null: see
--   pick_by_priority().
-- Locks: their rows, FOR NO KEY UPDATE SKIP LOCKED; never waits for one.
-- Why: one grant in ten goes to the oldest, so that no stream of better tasks holds a task up for ever (I13). Each
--   lane's share is found first, as in pick_by_priority().
create or replace function llmqueue_internal.pick_by_age(
    p_lanes text[], p_most integer[], p_wanted integer, p_skip llmqueue.task_id[], p_with_size boolean,
    p_now timestamptz, p_cursors llmqueue_internal.resume_cursor[] default null,
    out picked llmqueue_internal.locked_task[], out seen bigint, out has_more boolean, out looked jsonb,
    out cursors llmqueue_internal.resume_cursor[])
language plpgsql volatile as $$
begin
    with share as materialized (
        select oldest.lane, oldest.no, oldest.from_since, oldest.from_id, count(*) as tasks
          from (select given.lane, given.no, first.waiting_since as from_since, first.task_id as from_id,
                       task.waiting_since, task.id
                  from unnest(p_lanes, p_most) with ordinality given(lane, most, no)
                 cross join lateral llmqueue_internal.first_waiting(given.lane, p_cursors) first
                 cross join lateral (select t.waiting_since, t.id from llmqueue.task t
                                      where t.is_ready and t.lane = given.lane
                                        and (t.waiting_since, t.id) >= (first.waiting_since, first.task_id)
                                        and t.waiting_since <= p_now and t.id <> all (p_skip)
                                        and (not (select exists (select from llmqueue.quarantine))
                                     or (select true from llmqueue.quarantine s where s.task_id = t.id) is null)
                                      order by t.waiting_since, t.id limit least(p_wanted, given.most)) task
                 order by task.waiting_since, task.id limit p_wanted) oldest
         group by oldest.lane, oldest.no, oldest.from_since, oldest.from_id
    ), locked as materialized (
        select share.lane, share.no, task.*
          from share
         cross join lateral (select t.id, t.waiting_since, t.user_key, t.rank, t.deadline_at <= p_now as is_expired,
                                    t.fence,
                                    case when p_with_size then octet_length(t.prompt_text) end as bytes,
                                    case when p_with_size then llmqueue_internal.max_output_of(t.params::text) end
                                        as max_output
                               from llmqueue.task t
                              where t.is_ready and t.lane = share.lane
                                and (t.waiting_since, t.id) >= (share.from_since, share.from_id)
                                and t.waiting_since <= p_now and t.id <> all (p_skip)
                                and (not (select exists (select from llmqueue.quarantine))
                                     or (select true from llmqueue.quarantine s where s.task_id = t.id) is null)
                              order by t.waiting_since, t.id limit share.tasks
                                for no key update of t skip locked) task
    )
    select coalesce(array_agg((o.id, o.lane, o.user_key, o.rank >= llmqueue_internal.hot_priority(),
                               o.is_expired is true, o.bytes, o.max_output, o.fence)::llmqueue_internal.locked_task
                              order by o.waiting_since, o.id), '{}'),
           (select coalesce(sum(share.tasks), 0)::bigint from share),
           case when p_cursors is not null then
               array(select (first.lane, null, null, first.waiting_since, first.id, 0)::llmqueue_internal.resume_cursor
                       from (select distinct on (l.no) l.lane, l.waiting_since, l.id
                             from locked l order by l.no, l.waiting_since, l.id) first
                     union all
                     -- the oldest of its lane is the first of its user too
                     select (first.lane, first.rank, first.user_key, first.waiting_since, first.id,
                             first.taken)::llmqueue_internal.resume_cursor
                       from (select distinct on (l.no, l.rank, l.user_key) l.lane, l.rank, l.user_key, l.waiting_since,
                             l.id,
                                    (count(*) over (partition by l.no, l.rank, l.user_key))::integer as taken
                               from locked l order by l.no, l.rank, l.user_key, l.waiting_since, l.id) first) end
      into picked, seen, cursors
      from locked o;
    has_more := false;
end
$$;
