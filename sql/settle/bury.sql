-- What it does: ends tasks as dead letters: their own fault, no other try would help.
-- Returns: how many.
-- Locks: task rows in the order given, then attempt rows.
-- Why: fenced like all ends: a late worker cannot bury a task that runs again.
create or replace function llmqueue_internal.bury(p_worker uuid, p_items jsonb, p_now timestamptz)
returns integer language plpgsql volatile
set jit = off set plan_cache_mode = force_generic_plan set enable_seqscan = off set enable_hashjoin = off set enable_mergejoin = off as $$
declare
    v_now timestamptz := p_now;
    v_applied integer;
    v_unsent bigint[];
    v_probed bigint[];   -- probes that were not refused: their models are back
begin
    with given as materialized (
        select i.fence, i.task_id, i.answer, i.error_class, left(i.error, 2000) as error, i.sent_after_s, i.latency_s,
               i.is_unsent, i.char_class_estimate, a.granted_at
          from jsonb_to_recordset(p_items) as i(
                   fence bigint, task_id llmqueue.task_id, answer text, error_class text, error text,
                   sent_after_s double precision, latency_s double precision, is_unsent boolean, char_class_estimate integer)
         cross join lateral (select a.granted_at from llmqueue.attempt a
                              where a.fence = i.fence and a.worker = p_worker and a.task_id = i.task_id
                                and a.outcome is null limit 1) a
    ), applied as (
        update llmqueue.task t
           set status = llmqueue_internal.status_word('failed'), finished_at = v_now, error = g.error_class || ': ' || g.error
          from given g
         where t.id = g.task_id and t.is_running and t.fence = g.fence
        returning g.fence
    ), ended as (
        update llmqueue.attempt a
           set ended_at = v_now,
               outcome = case when applied.fence is null then 'late' else 'buried' end,
               sent_at = g.granted_at + make_interval(secs => g.sent_after_s),
               latency_s = g.latency_s,
               error_class = g.error_class,
               error = g.error,
               char_class_estimate = g.char_class_estimate,
               answer = g.answer
          from given g left join applied on applied.fence = g.fence
         where a.fence = g.fence
        returning a.fence, g.is_unsent, case when a.is_probe and g.is_unsent is not true then a.fence end as probed
    )
    select (select count(*)::integer from applied), array_agg(ended.fence) filter (where ended.is_unsent), array_agg(ended.probed) filter (where ended.probed is not null)
      into v_applied, v_unsent, v_probed from ended;
    perform llmqueue_internal.refund(v_unsent);
    perform llmqueue_internal.probe_answered(p.fence) from unnest(v_probed) p(fence);
    return v_applied;
end
$$;
