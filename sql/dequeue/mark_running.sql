-- What it does: marks locked, ready tasks as running under a new fence each, and logs the attempts.
-- Returns: the running tasks, in the order given.
-- Locks: none beyond the rows that the caller has locked.
-- Why: a task that has ended and was set back by hand starts anew: attempts from 1, and one more restart, which is part
--   of its Idempotency-Key (I18). One statement for all rows; by an array of keys and not by a join, since the plan of
--   a join is made for the size that the table had: a plan kept from when the table was small reads all of it once it
--   is large (design I14). For the same reason no condition implies a partial index: coalesce(is_ready, …). Keys and
--   charges are joined by a hash, hence the pin. An owner's trigger may keep a row as it was, hence is_running.
create or replace function llmqueue_internal.mark_running(
    p_worker uuid, p_budget llmqueue_internal.budget, p_candidates llmqueue_internal.charged_task[], p_now timestamptz)
returns llmqueue_internal.running_task[] language plpgsql volatile
set enable_hashjoin = on as $$
declare
    v_config llmqueue.model_config := p_budget.configured;
    v_ids llmqueue.task_id[] := array(select c.task_id from unnest(p_candidates) c);
    v_rows llmqueue_internal.running_task[];
    v_running bigint;
begin
    with taken as (
        update llmqueue.task t
           set status = llmqueue_internal.status_word('running'),
               fence = nextval('llmqueue.fence_seq'),
               attempts = case when t.finished_at is null then coalesce(t.attempts, 0) + 1 else 1 end,
               restarts = coalesce(t.restarts, 0) + (t.finished_at is not null)::integer,
               started_at = p_now,
               finished_at = null,
               error = null
         where t.id = any (v_ids) and coalesce(t.is_ready, false) and t.due_at <= p_now
        returning t.id::llmqueue.task_id as task_id, t.fence, t.attempts::integer as attempt_no,
                  coalesce(t.max_attempts, 5)::integer as max_attempts, t.restarts::integer as restarts, t.prompt_text,
                  t.params::text as params, t.is_running
    ), marked as materialized (
        select r.*, c.lane, c.is_hot, c.bytes_estimate, c.input_charge, c.output_charge, c.tokens, c.output_tokens, c.no
          from taken r
          join unnest(p_candidates) with ordinality c(task_id, lane, is_hot, bytes_estimate, input_charge,
                                                      output_charge, tokens, output_tokens, no) on c.task_id = r.task_id
         where r.is_running
    -- every attempt keeps the limits it was judged by and what it was charged, for `audit`
    ), logged as (
        insert into llmqueue.attempt (fence, task_id, model, worker, attempt_no, granted_at, cell, rpm, lane, is_hot,
                                      ceiling_rpm, tpm, output_tpm, token_mode, bytes_estimate, input_charge,
                                      output_charge, tokens, output_tokens_charged)
        select r.fence, r.task_id, p_budget.model, p_worker, r.attempt_no, p_budget.granted_at, p_budget.cell,
               v_config.rpm, r.lane, r.is_hot, nullif(p_budget.rpm, v_config.rpm), v_config.tpm, v_config.output_tpm,
               case when r.tokens is not null then v_config.token_mode end,
               r.bytes_estimate, r.input_charge, r.output_charge, r.tokens, r.output_tokens
          from marked r
    )
    select coalesce(array_agg((r.task_id, r.fence, r.attempt_no, r.max_attempts, r.restarts, r.prompt_text, r.params,
                               r.tokens, r.input_charge,
                               r.is_hot, r.lane, r.output_tokens)::llmqueue_internal.running_task order by r.no), '{}'),
           (select count(*) from taken r where r.is_running)
      into v_rows, v_running
      from marked r;
    if v_running > cardinality(v_rows) then
        raise exception 'a trigger has changed the key of a task';
    end if;
    return v_rows;
end
$$;
