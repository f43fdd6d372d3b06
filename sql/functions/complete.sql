-- What it does: writes answers to their tasks and ends the attempts.
-- Returns: how many answers were written to a task; settle() tells which.
-- Locks: task rows in the order given, then attempt rows.
-- Why: an answer counts if its attempt still holds the task, or if its task was given back or swept meanwhile and has
--   neither ended nor been started again: it is paid for. Else it is kept in the attempt log (I8). An attempt that was
--   settled already is left alone, so a flush can be sent twice. A task that was set back by hand has another life, and
--   its prompt may be another: its finished_at is set until the first claim, and from then on newer attempts count from
--   1 again, which those of the same life never do.
create or replace function llmqueue.complete(p_worker uuid, p_items jsonb, p_now timestamptz default null)
returns integer language plpgsql volatile
set jit = off set enable_seqscan = off set enable_hashjoin = off set enable_mergejoin = off as $$
declare
    v_now timestamptz := coalesce(p_now, clock_timestamp());
    v_ids llmqueue.task_id[];
begin
    with given as materialized (
        select i.*, a.granted_at, a.attempt_no
          from jsonb_to_recordset(p_items) as i(
                   fence bigint, task_id llmqueue.task_id, answer text, sent_after_s double precision,
                   latency_s double precision, input_tokens integer, output_tokens integer)
          join llmqueue.attempt a on a.fence = i.fence and a.worker = p_worker and a.task_id = i.task_id
         where a.outcome is null or a.outcome = 'lost'
    ), applied as (
        update llmqueue.task t
           set answer = llmqueue.answer_value(g.answer),
               status = llmqueue.status_word('solved'),
               error = null,
               input_tokens = g.input_tokens,
               output_tokens = g.output_tokens,
               finished_at = v_now
          from given g
         where t.id = g.task_id
           and ((t.is_running and t.fence = g.fence)
                or ((t.is_ready or t.is_delayed) and t.finished_at is null
                    and not exists (select from llmqueue.attempt newer
                                     where newer.task_id = g.task_id and newer.fence > g.fence
                                       and newer.attempt_no <= g.attempt_no)))
        returning t.id, g.fence
    ), ended as (
        update llmqueue.attempt a
           set ended_at = v_now,
               outcome = case when applied.fence is null then 'late' else 'completed' end,
               sent_at = g.granted_at + make_interval(secs => g.sent_after_s),
               latency_s = g.latency_s,
               input_tokens = g.input_tokens,
               output_tokens = g.output_tokens,
               answer = case when applied.fence is null then g.answer end
          from given g left join applied on applied.fence = g.fence
         where a.fence = g.fence
    )
    select array_agg(applied.id)::llmqueue.task_id[] into v_ids from applied;
    perform llmqueue.mark_done(v_ids);
    return coalesce(cardinality(v_ids), 0);
end
$$;
