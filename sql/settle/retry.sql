-- What it does: ends attempts that failed and delays their tasks by delay_s; a task that has used up its max_attempts
--   is buried instead.
-- Returns: how many tasks were delayed or buried; settle() says which.
-- Locks: rows of model_state, see start_cooldowns(), then attempt rows; settle() has locked the tasks before.
-- Why: a refusal by the model, or a failure of the backend (counts = false), is not the fault of the task: the attempt
--   is not counted, up to 20 times per task since the task last ended: a task that is always refused must end (I11).
--   A task whose failure was the backend's backs off exponentially, so that a fleet of probing workers does not use up
--   its 20 free retries. An attempt that a stopping worker had sent becomes a dead letter where on_crash is 'park'.
create or replace function llmqueue_internal.retry(p_worker uuid, p_items jsonb, p_now timestamptz)
returns integer language plpgsql volatile as $$
declare
    v_free_retries constant integer := 20;
    v_max_attempts constant integer := 5;   -- of a task that names none
    -- a Retry-After of 1e18 s must not overflow a timestamp
    v_year_s constant double precision := 31536000::double precision;
    v_applied integer;
    v_unsent bigint[];
    v_answered bigint[];   -- probes that were answered: the cooldowns of their models end
    v_cooldowns jsonb;     -- fence -> seconds until the model's cooldown ends, for attempts that were refused
begin
    v_cooldowns := llmqueue_internal.start_cooldowns(p_worker, p_items, p_now);
    with given as materialized (
        select i.fence, i.task_id, i.error_class, left(i.error, 2000) as error, i.sent_after_s, i.latency_s,
               coalesce(i.is_unsent, false) as is_unsent, i.char_class_estimate, a.granted_at,
               parked.is_so as is_parked,
               free.is_so is false or refused.times >= v_free_retries as counts,
               not is_backends.so and not v_cooldowns ? i.fence::text as is_answer,
               -- behind the end of the cooldown, and the further behind the more often the task was refused: others
               -- probe first
               least(greatest(coalesce(i.delay_s, 0), 0)
                     + case when v_cooldowns ? i.fence::text
                            then (v_cooldowns ->> i.fence::text)::double precision
                                 + random() * least(60, 2.0 ^ refused.times) / 2
                            when is_backends.so then least(120, 2.0 ^ refused.times) * (0.5 + random() / 2)
                            else 0 end,
                     v_year_s) as delay_s
          from jsonb_to_recordset(p_items) as i(
                   fence bigint, task_id llmqueue.task_id, delay_s double precision, counts boolean, error_class text,
                   error text, sent_after_s double precision, latency_s double precision, is_unsent boolean,
                   char_class_estimate integer, may_be_backends boolean)
         cross join lateral (select a.granted_at, a.model from llmqueue.attempt a
                              where a.fence = i.fence and a.worker = p_worker and a.task_id = i.task_id
                                and a.outcome is null limit 1) a
         cross join lateral (select not i.counts or v_cooldowns ? i.fence::text as is_so) free
         cross join lateral (select coalesce(i.may_be_backends and not i.counts, false) as so) is_backends
         cross join lateral (select i.error_class = 'worker_stopped' and i.sent_after_s is not null
                                    and coalesce((select c.on_crash = 'park' from llmqueue.model_config c
                                                   where c.model = a.model), false) as is_so) parked
         cross join lateral (select case when free.is_so
                                         then llmqueue_internal.count_refusals(i.task_id, v_free_retries)
                                         else 0 end as times) refused
    ), applied as (
        update llmqueue.task t
           set status = llmqueue_internal.status_word(
                   case when g.is_parked or g.counts and t.attempts >= coalesce(t.max_attempts, v_max_attempts)
                        then 'failed' else 'delayed' end),
               finished_at = case when g.is_parked
                                       or g.counts and t.attempts >= coalesce(t.max_attempts, v_max_attempts)
                                  then p_now end,
               attempts = t.attempts - (not g.counts)::integer,
               run_at = p_now + make_interval(secs => g.delay_s),
               error = case when g.is_parked then 'outcome_unknown' else g.error_class end || ': ' || g.error
          from given g
         where t.id = g.task_id and t.is_running and t.fence = g.fence
        returning g.fence, t.finished_at is not null as is_buried
    ), ended as (
        update llmqueue.attempt a
           set ended_at = p_now,
               outcome = case when applied.fence is null then 'late'
                              when applied.is_buried then 'buried'
                              when g.counts then 'retried'
                              else 'refused' end,
               sent_at = g.granted_at + make_interval(secs => g.sent_after_s),
               latency_s = g.latency_s,
               error_class = case when g.is_parked then 'outcome_unknown' else g.error_class end,
               error = g.error,
               char_class_estimate = g.char_class_estimate
          from given g left join applied on applied.fence = g.fence
         where a.fence = g.fence
        returning a.fence, g.is_unsent, a.is_probe and g.is_answer as is_answered_probe
    )
    select (select count(*)::integer from applied),
           array_agg(ended.fence) filter (where ended.is_unsent),
           array_agg(ended.fence) filter (where ended.is_answered_probe and not ended.is_unsent)
      into v_applied, v_unsent, v_answered
      from ended;
    perform llmqueue_internal.refund(v_unsent);
    perform llmqueue.end_cooldown(s.model) from llmqueue.model_state s where s.probe_fence = any (v_answered);
    return v_applied;
end
$$;
