-- What it does: marks locked, ready tasks as running under a new fence each, and logs the attempts.
-- Returns: them, in the order given.
-- Locks: none beyond the rows that the caller has locked.
-- Why: a task that has ended and was set back by hand starts anew: attempts from 1, and one more restart, which is part
--   of its Idempotency-Key (I18). The joins are forced to nested loops over the key: with statistics of a small table
--   the planner hashes the whole of it (design I14).
create or replace function llmqueue.lease_rows(
    p_worker uuid, p_model text, p_ids llmqueue.task_id[], p_cell bigint, p_rpm integer, p_now timestamptz)
returns llmqueue.leased[] language sql volatile
set jit = off set enable_seqscan = off set enable_hashjoin = off set enable_mergejoin = off as $$
    with leased as (
        update llmqueue.task t
           set status = llmqueue.status_word('running'),
               fence = nextval('llmqueue.fence_seq'),
               attempts = case when t.finished_at is null then coalesce(t.attempts, 0) + 1 else 1 end,
               restarts = coalesce(t.restarts, 0) + (t.finished_at is not null)::integer,
               started_at = p_now,
               finished_at = null,
               error = null
          from unnest(p_ids) with ordinality as picked(id, place)
         where t.id = picked.id and t.is_ready
        returning t.id, t.fence, t.attempts, t.restarts, t.max_attempts, t.prompt_text, t.params, t.is_running, picked.place
    ), logged as (
        insert into llmqueue.attempt (fence, task_id, model, worker, attempt_no, granted_at, cell, rpm)
        select l.fence, l.id, p_model, p_worker, l.attempts, p_now, p_cell, p_rpm from leased l where l.is_running
    )
    select coalesce(array_agg(row(l.id, l.fence, l.attempts, coalesce(l.max_attempts, 5), l.restarts, l.prompt_text,
                                  l.params::text)::llmqueue.leased order by l.place), '{}')
      from leased l where l.is_running
$$;
