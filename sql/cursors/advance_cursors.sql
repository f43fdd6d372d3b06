-- What it does: adds cursors to those that a claim has, in place of older ones of the same lane, priority and user.
-- Returns: per lane the cursor in order of age, and at most ten others: the newest five, then those with the most tasks
--   taken.
-- Locks: none.
-- Why: each step of a claim looks through all cursors, so ten that save much are better than hundreds that save little:
--   a user with few tasks taken leaves few dead entries.
create or replace function llmqueue_internal.advance_cursors(
    p_cursors llmqueue_internal.resume_cursor[], p_new llmqueue_internal.resume_cursor[])
returns llmqueue_internal.resume_cursor[] language sql immutable as $$
    select case when p_cursors is null or coalesce(cardinality(p_new), 0) = 0 then p_cursors else array(
        select (k.lane, k.rank, k.user_key, k.due_at, k.task_id, k.taken)::llmqueue_internal.resume_cursor
          from (select x.*, row_number() over (
                           partition by x.lane, x.rank is null
                           order by case when x.is_new and x.place <= 5 then 1 else 2 end, x.taken desc, x.user_key
                       ) as no
                  from (select n.lane, n.rank, n.user_key, n.due_at, n.task_id, true as is_new,
                               least(1000000000, n.taken + coalesce(o.taken, 0)) as taken,
                               row_number() over (partition by n.lane, n.rank is null
                                                  order by n.taken desc, n.user_key) as place
                          from unnest(p_new) n
                          left join unnest(p_cursors) o on n.lane = o.lane and n.rank is not distinct from o.rank
                                                       and n.user_key is not distinct from o.user_key
                        union all
                        select o.lane, o.rank, o.user_key, o.due_at, o.task_id, false, coalesce(o.taken, 0), null
                          from unnest(p_cursors) o
                         where not exists (select from unnest(p_new) n
                                            where n.lane = o.lane and n.rank is not distinct from o.rank
                                              and n.user_key is not distinct from o.user_key)) x) k
         where k.no <= 10) end
$$;
