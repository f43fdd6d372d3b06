-- What it does: keeps answers to attempts that this server does not know: their claims were lost in a failover.
-- Returns: how many answers were kept.
-- Locks: none.
-- Why: a paid answer is never thrown away (I8). It is not written to the task: after a loss nobody can tell whether the
--   row under that key is the one that was sent. The task is ready again, and `llmqueue tasks show` has the answer.
--   The call was made before the epoch began, whenever its answer arrived: `audit` counts it there.
create or replace function llmqueue_internal.keep_lost(p_worker uuid, p_items jsonb, p_now timestamptz)
returns integer language plpgsql volatile as $$
declare
    v_kept integer;
begin
    insert into llmqueue.attempt (fence, task_id, model, worker, attempt_no, granted_at, cell, rpm, ended_at, outcome,
                                  error_class, error, latency_s, input_tokens, output_tokens, answer)
    select i.fence, i.task_id, coalesce(i.model, ''), p_worker, 0, called.at,
           llmqueue_internal.cell_of(called.at), coalesce(c.rpm, 0), p_now, 'late', 'claim_lost',
           'the claim was lost in a failover or a restore; the answer came nevertheless',
           i.latency_s, i.input_tokens, i.output_tokens, i.answer
      from jsonb_to_recordset(p_items) as i(
               verb text, fence bigint, task_id llmqueue.task_id, model text, answer text, latency_s double precision,
               input_tokens integer, output_tokens integer)
      join (select e.began_at, e.fence_floor from llmqueue.epoch e order by e.epoch_no desc limit 1) e on true
      left join llmqueue.model_config c on c.model = i.model
     cross join lateral (select least(e.began_at, p_now - make_interval(secs => coalesce(i.latency_s, 0))) as at) called
     where i.verb = 'complete' and i.fence between 1 and e.fence_floor   -- only an earlier epoch may have drawn it
       and (select true from llmqueue.attempt a where a.fence = i.fence) is null   -- a join would read the whole log
        on conflict (fence) do nothing;
    get diagnostics v_kept = row_count;
    return v_kept;
end
$$;
