-- What it does: ends tasks as dead letters after an error that is the task's own: another attempt would not help.
-- Returns: how many tasks were buried.
-- Locks: attempt rows; settle() has locked the tasks before.
-- Why: fenced like every end of an attempt: a late worker cannot bury a task that runs again.
create or replace function llmqueue_internal.bury(p_worker uuid, p_items jsonb, p_now timestamptz)
returns integer language plpgsql volatile as $$
declare
    v_applied integer;
    v_unsent bigint[];
    v_answered bigint[];   -- probes that were answered: the cooldowns of their models end
begin
    with given as materialized (
        select i.fence, i.task_id, i.answer, i.error_class, left(i.error, 2000) as error, i.sent_after_s, i.latency_s,
               i.is_unsent, i.char_class_estimate, a.granted_at
          from jsonb_to_recordset(p_items) as i(
                   fence bigint, task_id llmqueue.task_id, answer text, error_class text, error text,
                   sent_after_s double precision, latency_s double precision, is_unsent boolean,
                   char_class_estimate integer)
         cross join lateral (select a.granted_at from llmqueue.attempt a
                              where a.fence = i.fence and a.worker = p_worker and a.task_id = i.task_id
                                and a.outcome is null limit 1) a
    ), applied as (
        update llmqueue.task t
           set status = llmqueue_internal.status_word('failed'), finished_at = p_now,
               error = g.error_class || ': ' || g.error
          from given g
         where t.id = g.task_id and t.is_running and t.fence = g.fence
        returning g.fence
    ), ended as (
        update llmqueue.attempt a
           set ended_at = p_now,
               outcome = case when applied.fence is null then 'late' else 'buried' end,
               sent_at = g.granted_at + make_interval(secs => g.sent_after_s),
               latency_s = g.latency_s,
               error_class = g.error_class,
               error = g.error,
               char_class_estimate = g.char_class_estimate,
               answer = g.answer
          from given g left join applied on applied.fence = g.fence
         where a.fence = g.fence
        returning a.fence, coalesce(g.is_unsent, false) as is_unsent, a.is_probe
    )
    select (select count(*)::integer from applied),
           array_agg(ended.fence) filter (where ended.is_unsent),
           array_agg(ended.fence) filter (where ended.is_probe and not ended.is_unsent)
      into v_applied, v_unsent, v_answered
      from ended;
    perform llmqueue_internal.refund(v_unsent);
    perform llmqueue.end_cooldown(s.model) from llmqueue.model_state s where s.probe_fence = any (v_answered);
    return v_applied;
end
$$;
