-- What it does: locks up to p_wanted ready tasks of one priority, from several lanes in turn, in each from its users in
--   turn. A lane that n models take from has one turn in n of each: its turns are n apart, and when the first comes is
--   drawn.
-- Returns: one row: picked, in order; seen: how many there were to lock; has_more: whether there may be more than were
--   seen; looked: 'rank lane' -> the user who was looked at last; cursors: the first task of each user, if cursors are
--   wanted.
-- Locks: their rows, FOR NO KEY UPDATE SKIP LOCKED; never waits for one.
-- Why: users are stepped through one by one (a loose index scan) from the one after the user served last (p_users:
--   'rank lane' -> user), so the cost is that of the batch, not of all users (I13); who has nothing due is passed over.
--   A user's tasks are read from the first that is ready, so dead entries are passed over once. Only as many rows are
--   locked as are taken, so each user's share is found first: a row locked and not taken would look like an empty lane
--   to another model.
create or replace function llmqueue_internal.pick_by_priority(
    p_lanes text[], p_most integer[], p_users jsonb, p_rank bigint, p_wanted integer, p_skip llmqueue.task_id[],
    p_with_size boolean, p_now timestamptz, p_cursors llmqueue_internal.resume_cursor[] default null,
    out picked llmqueue_internal.locked_task[], out seen bigint, out has_more boolean, out looked jsonb,
    out cursors llmqueue_internal.resume_cursor[])
language plpgsql volatile as $$
declare
    v_width double precision[] := array[1]::double precision[];   -- of the lanes, in their order
    v_start double precision[] := array[0]::double precision[];
    v_first record;
    v_of_user record;
begin
    if cardinality(p_lanes) = 1 and p_most[1] > 0 then   -- nearly always: one lane, and one user in it
        v_first := llmqueue_internal.next_user(p_lanes[1], p_rank, p_users ->> (p_rank || ' ' || p_lanes[1]),
                                               p_cursors);
        if v_first.user_key is null then
            picked := '{}';
            seen := 0;
            has_more := false;
            cursors := case when p_cursors is not null then '{}'::llmqueue_internal.resume_cursor[] end;
            return;
        end if;
        if (p_wanted = 1 and v_first.due_at <= p_now)
           or (llmqueue_internal.next_user(p_lanes[1], p_rank, v_first.user_key, p_cursors)).user_key
               is not distinct from v_first.user_key then
            v_of_user := llmqueue_internal.pick_of_user(
                p_lanes[1], p_rank, v_first.user_key, v_first.due_at, v_first.task_id, least(p_wanted, p_most[1]),
                p_skip, p_with_size, p_now, p_cursors is not null);
            picked := v_of_user.picked;
            seen := v_of_user.seen;
            has_more := v_of_user.has_more;
            looked := v_of_user.looked;
            cursors := v_of_user.cursors;
            return;
        end if;
    end if;
    if cardinality(p_lanes) > 1 then
        -- whose turn is first is drawn such that the shares are 1 / width, of single tasks too; of several each claim
        -- has them but for one
        select array_agg(w.width order by w.no),
               array_agg(case when p_wanted = 1 then -ln(1 - random()) else random() end * w.width order by w.no)
                   into v_width, v_start
          from (select l.no, llmqueue_internal.lane_width(l.lane)::double precision as width
                  from unnest(p_lanes) with ordinality l(lane, no) offset 0) w;
    end if;
    with recursive member as (
        select given.lane, given.most, given.no, first.user_key as start, first.user_key, first.due_at, first.task_id,
               1 as n,
               (first.due_at <= p_now)::integer as found
          from unnest(p_lanes, p_most) with ordinality given(lane, most, no)
         cross join lateral llmqueue_internal.next_user(given.lane, p_rank, p_users ->> (p_rank || ' ' || given.lane),
                                                        p_cursors) first
         where given.most > 0 and first.user_key is not null
        union all
        select m.lane, m.most, m.no, m.start, next.user_key, next.due_at, next.task_id, m.n + 1,
               m.found + (next.due_at <= p_now)::integer
          from member m
         cross join lateral llmqueue_internal.next_user(m.lane, p_rank, m.user_key, p_cursors) next
         where m.found < p_wanted and m.n < 4 * p_wanted + 100 and next.user_key <> m.start
    ), flow as materialized (
        select m.*, case when count(*) over (partition by m.no) = 1 then least(p_wanted, m.most)
                         else 2 * p_wanted / count(*) over (partition by m.no) + 1 end as deep
          from member m where m.due_at <= p_now
    ), head as materialized (
        select flow.lane, flow.most, flow.no, flow.user_key, flow.due_at, flow.task_id, flow.n, flow.deep,
               row_number() over (partition by flow.no, flow.n order by task.due_at, task.id) as round
          from flow
         cross join lateral (select t.due_at, t.id from llmqueue.task t
                              where t.is_ready and t.lane = flow.lane and t.rank = p_rank and t.user_key = flow.user_key
                                and (t.due_at, t.id) >= (flow.due_at, flow.task_id)
                                and t.due_at <= p_now and t.id <> all (p_skip)
                                and (not (select exists (select from llmqueue.quarantine))
                                     or (select true from llmqueue.quarantine s where s.task_id = t.id) is null)
                              order by t.due_at, t.id limit flow.deep) task
    ), share as materialized (
        select best.lane, best.no, best.user_key, best.due_at, best.task_id, best.n, count(*) as tasks
          from (select placed.*
                  from (select head.*, row_number() over (partition by head.no order by head.round, head.n) as place
                    from head) placed
                 where placed.place <= placed.most
                 order by v_start[placed.no] + (placed.place - 1) * v_width[placed.no], placed.no limit p_wanted) best
         group by best.lane, best.no, best.user_key, best.due_at, best.task_id, best.n
    ), locked as materialized (
        select share.lane, share.no, share.user_key, share.n, task.*
          from share
         cross join lateral (select t.id, t.due_at, t.deadline_at <= p_now as is_expired, t.fence,
                                    case when p_with_size then octet_length(t.prompt_text) end as bytes,
                                    case when p_with_size then llmqueue_internal.max_output_of(t.params::text) end
                                        as max_output
                               from llmqueue.task t
                              where t.is_ready and t.lane = share.lane and t.rank = p_rank
                                and t.user_key = share.user_key
                                and (t.due_at, t.id) >= (share.due_at, share.task_id)
                                and t.due_at <= p_now and t.id <> all (p_skip)
                                and (not (select exists (select from llmqueue.quarantine))
                                     or (select true from llmqueue.quarantine s where s.task_id = t.id) is null)
                              order by t.due_at, t.id limit share.tasks
                                for no key update of t skip locked) task
    )
    select coalesce(array_agg((o.id, o.lane, o.user_key, p_rank >= llmqueue_internal.hot_priority(),
                               o.is_expired is true, o.bytes, o.max_output, o.fence)::llmqueue_internal.locked_task
                              order by v_start[o.no] + (o.place - 1) * v_width[o.no], o.no), '{}'),
           (select count(*) from head), (select coalesce(bool_or(head.round = head.deep), false) from head)
           or exists (select from member where member.n = 4 * p_wanted + 100),
           (select jsonb_object_agg(p_rank || ' ' || last.lane, last.user_key)
              from (select distinct on (member.no) member.lane, member.user_key
                    from member order by member.no, member.n desc) last),
           case when p_cursors is not null then
               array(select (head.lane, p_rank, head.user_key, head.due_at, head.id,
                             head.taken)::llmqueue_internal.resume_cursor
                       from (select distinct on (l.no, l.n) l.lane, l.user_key, l.due_at, l.id,
                                    (count(*) over (partition by l.no, l.n))::integer as taken
                               from locked l order by l.no, l.n, l.due_at, l.id) head) end
      into picked, seen, has_more, looked, cursors
      from (select r.*, row_number() over (partition by r.no order by r.round, r.n) as place
              from (select locked.*, row_number() over (partition by locked.no, locked.n
                                                        order by locked.due_at, locked.id) as round
                      from locked) r) o;
end
$$;
