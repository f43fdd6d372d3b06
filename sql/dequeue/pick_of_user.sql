-- What it does: locks up to p_wanted ready tasks of one user of a lane, of one priority, from the first ready one on.
-- Returns: one row, as pick_by_priority() does for a lane that has this user alone.
-- Locks: their rows, FOR NO KEY UPDATE SKIP LOCKED; never waits for one.
-- Why: with one user there are no turns to find out, which is most of the work of a claim of few tasks.
create or replace function llmqueue_internal.pick_of_user(
    p_lane text, p_rank bigint, p_user text, p_from_due timestamptz, p_from_id llmqueue.task_id, p_wanted integer,
    p_skip llmqueue.task_id[], p_with_size boolean, p_now timestamptz, p_with_cursor boolean,
    out picked llmqueue_internal.locked_task[], out seen bigint, out has_more boolean, out looked jsonb,
    out cursors llmqueue_internal.resume_cursor[])
language plpgsql volatile as $$
begin
    select coalesce(array_agg((o.id, p_lane, p_user, p_rank >= llmqueue_internal.hot_priority(), o.is_expired is true,
                               o.bytes,
                               o.max_output, o.fence)::llmqueue_internal.locked_task order by o.due_at, o.id), '{}')
      into picked
      from (select t.id, t.due_at, t.deadline_at <= p_now as is_expired, t.fence,
                   case when p_with_size then octet_length(t.prompt_text) end as bytes,
                   case when p_with_size then llmqueue_internal.max_output_of(t.params::text) end as max_output
              from llmqueue.task t
             where t.is_ready and t.lane = p_lane and t.rank = p_rank and t.user_key = p_user
               and (t.due_at, t.id) >= (p_from_due, p_from_id) and t.due_at <= p_now and t.id <> all (p_skip)
               and (not (select exists (select from llmqueue.quarantine))
                    or (select true from llmqueue.quarantine s where s.task_id = t.id) is null)
             order by t.due_at, t.id limit p_wanted
               for no key update of t skip locked) o;
    seen := cardinality(picked)::bigint;
    if p_with_cursor then
        cursors := array(select (p_lane, p_rank, p_user, t.due_at, t.id, seen::integer)::llmqueue_internal.resume_cursor
                           from llmqueue.task t where t.id = (picked[1]).task_id);
    end if;
    if seen < p_wanted then   -- somebody may hold the others
        select count(*) into seen
          from (select from llmqueue.task t
                 where t.is_ready and t.lane = p_lane and t.rank = p_rank and t.user_key = p_user
                   and (t.due_at, t.id) >= (p_from_due, p_from_id) and t.due_at <= p_now and t.id <> all (p_skip)
                   and (not (select exists (select from llmqueue.quarantine))
                        or (select true from llmqueue.quarantine s where s.task_id = t.id) is null)
                 order by t.due_at, t.id limit p_wanted) there;
    end if;
    has_more := seen = p_wanted;
    looked := jsonb_build_object(p_rank || ' ' || p_lane, p_user);
end
$$;
