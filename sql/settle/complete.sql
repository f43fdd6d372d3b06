-- What it does: writes answers to their tasks and ends the attempts.
-- Returns: how many answers were written to a task; settle() says which.
-- Locks: attempt rows; settle() has locked the tasks before.
-- Why: an answer counts if its attempt still holds the task. It also counts if the task was released or swept meanwhile
--   and has neither ended nor started again, or was parked because nobody knew what became of this very call: it is
--   paid for. Any other answer is kept in the attempt log (I8). An attempt that was settled before is left alone, so a
--   flush can be sent twice.
--   A manually restarted task may have a new prompt, so an answer from before the restart is not written: finished_at
--   stays set until the next claim, which numbers the attempts from 1 again. A new row under the key of a deleted one
--   has no fence.
--   Nearly all tasks still run under the fence of their attempt. They are written in one statement, found by an array
--   of keys as in mark_running(); the values of each are found by a binary search (width_bucket) in the sorted fences:
--   a linear search took a quarter of the time. All other answers are written one by one.
create or replace function llmqueue_internal.complete(p_worker uuid, p_items jsonb, p_now timestamptz)
returns integer language plpgsql volatile as $$
declare
    v_item record;
    v_attempt llmqueue.attempt;
    v_is_applied boolean;
    v_ids llmqueue.task_id[];   -- tasks whose answer was written
    v_fences bigint[];          -- of the items, the lowest first; the arrays that follow are in the same order
    v_tasks llmqueue.task_id[];
    v_answers text[];
    v_sent_after_s double precision[];
    v_latencies double precision[];
    v_inputs integer[];
    v_outputs integer[];
    v_estimates integer[];
    v_applied bigint[];
    v_answered bigint[];        -- probes: the cooldowns of their models end
begin
    select array_agg(i.fence order by i.fence), array_agg(i.task_id order by i.fence),
           array_agg(i.answer order by i.fence), array_agg(i.sent_after_s order by i.fence),
           array_agg(i.latency_s order by i.fence), array_agg(i.input_tokens order by i.fence),
           array_agg(i.output_tokens order by i.fence), array_agg(i.char_class_estimate order by i.fence)
      into v_fences, v_tasks, v_answers, v_sent_after_s, v_latencies, v_inputs, v_outputs, v_estimates
      from jsonb_to_recordset(p_items) as i(
               fence bigint, task_id llmqueue.task_id, answer text, sent_after_s double precision,
               latency_s double precision, input_tokens integer, output_tokens integer, char_class_estimate integer)
     where i.fence is not null;

    with applied as (
        update llmqueue.task t
           set (answer, status, error, input_tokens, output_tokens, finished_at)
             = (select llmqueue_internal.answer_value(v_answers[i.no]), llmqueue_internal.status_word('solved'), null,
                       v_inputs[i.no], v_outputs[i.no], p_now
                  from (select width_bucket(t.fence, v_fences) as no) i)
         where t.id = any (v_tasks) and coalesce(t.is_running, false)
           and v_fences[width_bucket(t.fence, v_fences)] = t.fence
           and (select true from llmqueue.attempt a
                 where a.fence = t.fence and a.worker = p_worker and a.task_id = t.id
                   and (a.outcome is null or a.outcome = 'lost'))
        returning t.fence, t.id::llmqueue.task_id as id)
    select array_agg(a.fence), array_agg(a.id) into v_applied, v_ids from applied a;
    for v_attempt in
        with ended as (
            update llmqueue.attempt a
               set (ended_at, outcome, error_class, sent_at, latency_s, input_tokens, output_tokens,
                    char_class_estimate)
                 = (select p_now, 'completed', null, a.granted_at + make_interval(secs => v_sent_after_s[i.no]),
                           v_latencies[i.no], v_inputs[i.no], v_outputs[i.no], v_estimates[i.no]
                      from (select width_bucket(a.fence, v_fences) as no) i)
             where a.fence = any (v_applied)
            returning a.*)
        select e.* from ended e where e.tokens is not null or e.is_probe
    loop
        perform llmqueue_internal.reconcile(v_attempt, v_attempt.input_tokens, v_attempt.output_tokens);
        if v_attempt.is_probe then
            v_answered := v_answered || v_attempt.fence;
        end if;
    end loop;

    if cardinality(v_applied) is distinct from cardinality(v_fences) then   -- seldom; the query alone takes time
        for v_item in
            select * from jsonb_to_recordset(p_items) as i(
                fence bigint, task_id llmqueue.task_id, answer text, sent_after_s double precision,
                latency_s double precision, input_tokens integer, output_tokens integer, char_class_estimate integer)
             where i.fence <> all (coalesce(v_applied, '{}'))
        loop
            select a.* into v_attempt from llmqueue.attempt a
             where a.fence = v_item.fence and a.worker = p_worker and a.task_id = v_item.task_id
               and (a.outcome is null or a.outcome = 'lost');
            continue when not found;

            update llmqueue.task t
               set answer = llmqueue_internal.answer_value(v_item.answer),
                   status = llmqueue_internal.status_word('solved'),
                   error = null,
                   input_tokens = v_item.input_tokens,
                   output_tokens = v_item.output_tokens,
                   finished_at = p_now
             where t.id = v_item.task_id
               and (((t.is_ready or t.is_delayed) and t.finished_at is null and t.fence >= v_item.fence
                        and not exists (select from llmqueue.attempt newer
                                         where newer.task_id = v_item.task_id and newer.fence > v_item.fence
                                           and newer.attempt_no <= v_attempt.attempt_no))
                    or (t.is_failed and t.fence = v_item.fence and v_attempt.outcome = 'lost'
                        and v_attempt.error_class = 'outcome_unknown'));
            v_is_applied := found;

            update llmqueue.attempt a
               set ended_at = p_now,
                   outcome = case when v_is_applied then 'completed' else 'late' end,
                   error_class = case when not v_is_applied then a.error_class end,
                   sent_at = v_attempt.granted_at + make_interval(secs => v_item.sent_after_s),
                   latency_s = v_item.latency_s,
                   input_tokens = v_item.input_tokens,
                   output_tokens = v_item.output_tokens,
                   char_class_estimate = v_item.char_class_estimate,
                   answer = case when not v_is_applied then v_item.answer end
             where a.fence = v_item.fence;
            perform llmqueue_internal.reconcile(v_attempt, v_item.input_tokens, v_item.output_tokens);
            if v_attempt.is_probe then
                v_answered := v_answered || v_attempt.fence;
            end if;
            if v_is_applied then
                v_ids := v_ids || v_item.task_id;
            end if;
        end loop;
    end if;
    if v_answered is not null then
        perform llmqueue.end_cooldown(s.model) from llmqueue.model_state s where s.probe_fence = any (v_answered);
    end if;
    perform llmqueue_internal.mark_done(v_ids);
    return coalesce(cardinality(v_ids), 0);
end
$$;
