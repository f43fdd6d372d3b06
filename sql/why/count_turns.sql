-- What it does: counts the tasks of the same lane and priority that are ahead of a task: those of its own user that
--   were due before it, and those of the other users whose turn comes meanwhile.
-- Returns: one row: own, users (others that wait at this priority), turns (at most so many of their tasks go first),
--   and for own and turns whether the count is exact: at most p_cap tasks of each kind and 500 users are read.
-- Locks: none.
-- Why: users take turns, so a task waits for as many tasks of each other user as for its own user's, and one more.
--   Users are found one by one in the index (a loose scan), each at the cost of one task.
create or replace function llmqueue_internal.count_turns(
    p_task_id llmqueue.task_id, p_cap integer, p_now timestamptz,
    out own bigint, out own_is_exact boolean, out users bigint, out turns bigint, out turns_is_exact boolean)
language plpgsql stable as $$
declare
    v_most_users constant integer := 500;
    v_has_quarantine constant boolean := exists (select from llmqueue.quarantine);
    v_task record;
    v_seen integer;
begin
    select t.id, t.lane, t.rank::bigint as rank, t.user_key, t.due_at into strict v_task
      from llmqueue.task t where t.id = p_task_id;
    select count(*) filter (where (x.deadline_at <= p_now) is not true
                              and (not v_has_quarantine
                                   or (select true from llmqueue.quarantine s where s.task_id = x.id) is null)),
           count(*) <= p_cap
      into own, own_is_exact
      from (select t.id, t.deadline_at from llmqueue.task t
             where t.is_ready and t.lane = v_task.lane and t.rank = v_task.rank and t.user_key = v_task.user_key
               and (t.due_at, t.id) < (v_task.due_at, v_task.id)
             order by t.due_at, t.id limit p_cap + 1) x;
    own := least(own, p_cap);

    with recursive waiting as (
        (select t.user_key, 1 as n from llmqueue.task t
          where t.is_ready and t.lane = v_task.lane and t.rank = v_task.rank order by t.user_key limit 1)
        union all
        select next.user_key, w.n + 1
          from waiting w
         cross join lateral (select t.user_key from llmqueue.task t
                              where t.is_ready and t.lane = v_task.lane and t.rank = v_task.rank
                                and t.user_key > w.user_key
                              order by t.user_key limit 1) next
         where w.n <= v_most_users
    )
    select count(distinct seen.user_key), count(*), (select max(w.n) from waiting w) into users, turns, v_seen
      from (select w.user_key
              from waiting w
             cross join lateral (select from llmqueue.task t
                                  where t.is_ready and t.lane = v_task.lane and t.rank = v_task.rank
                                    and t.user_key = w.user_key and t.due_at <= p_now
                                  order by t.due_at limit own + 1) task
             where w.user_key <> v_task.user_key limit p_cap + 1) seen;
    turns_is_exact := own_is_exact and v_seen <= v_most_users and turns <= p_cap;
    turns := least(turns, p_cap);
end
$$;
