-- What it does: ends attempts that failed and lets their tasks run again after delay_s; a task that has used up its
--   max_attempts is buried instead.
-- Returns: how many tasks will run again or were buried; settle() tells which.
-- Locks: task rows in the order given, then attempt rows.
-- Why: a refusal of the model, or a failure of the backend (counts = false), is not the task's fault and gives its attempt
--   back, up to 20 times for one task, counted since it last ended: a task that is always refused must end some day (I11).
--   Spared for the backend's sake it waits by itself, the longer the more often, so that a fleet of probing workers does not
--   use its 20 up on one task. An attempt that a stopping worker had sent is a dead letter where on_crash says 'park'.
create or replace function llmqueue_internal.retry(p_worker uuid, p_items jsonb, p_now timestamptz)
returns integer language plpgsql volatile
set jit = off set plan_cache_mode = force_generic_plan set enable_seqscan = off set enable_hashjoin = off set enable_mergejoin = off as $$
declare
    v_now timestamptz := p_now;
    v_refusals constant integer := 20;
    v_year_s constant double precision := 31536000.0::double precision;   -- a Retry-After of 1e18 s must not overflow a timestamp
    v_applied integer;
    v_unsent bigint[];
    v_reopens jsonb;     -- fence -> seconds until its model reopens, for those that were refused
    v_probed bigint[];   -- probes that were not refused: their models are back
begin
    v_reopens := llmqueue_internal.start_cooldowns(p_worker, p_items, v_now);
    with given as materialized (
        select i.fence, i.task_id, i.error_class, left(i.error, 2000) as error, i.sent_after_s, i.latency_s, i.is_unsent,
               i.char_class_estimate, a.granted_at, parked.is_so as is_parked, spared.is_so is false or refused.times >= v_refusals as counts,
               coalesce(i.may_be_backends and not i.counts, false) as is_backends,
               -- behind the reopening, and the further behind the more often it was refused: others probe first
               least(greatest(coalesce(i.delay_s, 0), 0)
                     + case when v_reopens ? i.fence::text
                            then (v_reopens ->> i.fence::text)::double precision + random() * least(60, 2.0 ^ refused.times) / 2
                            when i.may_be_backends and not i.counts then least(120, 2.0 ^ refused.times) * (0.5 + random() / 2)
                            else 0 end,
                     v_year_s) as delay_s
          from jsonb_to_recordset(p_items) as i(
                   fence bigint, task_id llmqueue.task_id, delay_s double precision, counts boolean, error_class text,
                   error text, sent_after_s double precision, latency_s double precision, is_unsent boolean, char_class_estimate integer,
                   may_be_backends boolean)
         cross join lateral (select a.granted_at, a.model from llmqueue.attempt a
                              where a.fence = i.fence and a.worker = p_worker and a.task_id = i.task_id
                                and a.outcome is null limit 1) a
         cross join lateral (select not i.counts or v_reopens ? i.fence::text as is_so) spared
         cross join lateral (select i.error_class = 'worker_stopped' and i.sent_after_s is not null and coalesce(
                                        (select c.on_crash = 'park' from llmqueue.model_config c where c.model = a.model), false) as is_so) parked
         cross join lateral (select case when spared.is_so then llmqueue_internal.count_refusals(i.task_id, v_refusals) else 0 end as times) refused
    ), applied as (
        update llmqueue.task t
           set status = llmqueue_internal.status_word(
                   case when g.is_parked or g.counts and t.attempts >= coalesce(t.max_attempts, 5) then 'failed' else 'delayed' end),
               finished_at = case when g.is_parked or g.counts and t.attempts >= coalesce(t.max_attempts, 5) then v_now end,
               attempts = t.attempts - (not g.counts)::integer,
               run_at = v_now + make_interval(secs => g.delay_s),
               error = case when g.is_parked then 'outcome_unknown' else g.error_class end || ': ' || g.error
          from given g
         where t.id = g.task_id and t.is_running and t.fence = g.fence
        returning g.fence, t.finished_at is not null as is_buried
    ), ended as (
        update llmqueue.attempt a
           set ended_at = v_now,
               outcome = case when applied.fence is null then 'late' when applied.is_buried then 'buried' when g.counts then 'retried' else 'refused' end,
               sent_at = g.granted_at + make_interval(secs => g.sent_after_s),
               latency_s = g.latency_s,
               error_class = case when g.is_parked then 'outcome_unknown' else g.error_class end,
               error = g.error,
               char_class_estimate = g.char_class_estimate
          from given g left join applied on applied.fence = g.fence
         where a.fence = g.fence
        returning a.fence, g.is_unsent, case when a.is_probe and g.is_unsent is not true and not g.is_backends and not v_reopens ? g.fence::text then a.fence end as probed
    )
    select (select count(*)::integer from applied), array_agg(ended.fence) filter (where ended.is_unsent), array_agg(ended.probed) filter (where ended.probed is not null)
      into v_applied, v_unsent, v_probed from ended;
    perform llmqueue_internal.refund(v_unsent);
    perform llmqueue_internal.probe_answered(p.fence) from unnest(v_probed) p(fence);
    return v_applied;
end
$$;
