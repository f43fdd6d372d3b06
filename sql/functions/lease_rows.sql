-- What it does: marks locked, ready tasks as running under a new fence each, and logs the attempts.
-- Returns: them, in the order given.
-- Locks: none beyond the rows that the caller has locked.
-- Why: a task that has ended and was set back by hand starts anew: attempts from 1, and one more restart, which is part
--   of its Idempotency-Key (I18). Row by row by the key: a join is planned for the size that the table had, and a plan
--   kept from when it was small reads all of it once it is large (design I14). An owner's trigger may keep a row as it
--   was, hence is_running.
create or replace function llmqueue.lease_rows(
    p_worker uuid, p_budget llmqueue.budget, p_candidates llmqueue.candidate[], p_now timestamptz)
returns llmqueue.leased[] language plpgsql volatile
set jit = off set plan_cache_mode = force_generic_plan set enable_seqscan = off set enable_bitmapscan = off as $$
declare
    v_config llmqueue.model_config := p_budget.configured;
    v_candidate llmqueue.candidate;
    v_row llmqueue.leased;
    v_is_running boolean;
    v_rows llmqueue.leased[] := array[]::llmqueue.leased[];
    v_taken llmqueue.candidate[] := array[]::llmqueue.candidate[];   -- those of v_rows, in the same order
begin
    foreach v_candidate in array p_candidates loop
        update llmqueue.task t
           set status = llmqueue.status_word('running'),
               fence = nextval('llmqueue.fence_seq'),
               attempts = case when t.finished_at is null then coalesce(t.attempts, 0) + 1 else 1 end,
               restarts = coalesce(t.restarts, 0) + (t.finished_at is not null)::integer,
               started_at = p_now,
               finished_at = null,
               error = null
         where t.id = v_candidate.task_id and t.is_ready
        returning t.id::llmqueue.task_id, t.fence, t.attempts::integer, coalesce(t.max_attempts, 5)::integer,
                  t.restarts::integer, t.prompt_text, t.params::text, t.is_running
          into v_row.task_id, v_row.fence, v_row.attempt_no, v_row.max_attempts, v_row.restarts, v_row.prompt, v_row.params,
               v_is_running;
        if v_is_running then
            v_row.tokens := v_candidate.tokens;
            v_row.input_charge := v_candidate.input_charge;
            v_row.is_hot := v_candidate.is_hot;
            v_row.lane := v_candidate.lane;
            v_row.output_tokens := v_candidate.output_tokens;
            v_rows := v_rows || v_row;
            v_taken := v_taken || v_candidate;
        end if;
    end loop;
    -- every attempt keeps the limits it was judged by and what it was charged, for `audit`
    insert into llmqueue.attempt (fence, task_id, model, worker, attempt_no, granted_at, cell, rpm, lane, is_hot, ceiling_rpm, tpm,
                                  output_tpm, token_mode, bytes_estimate, input_charge, output_charge, tokens, output_tokens_charged)
    select r.fence, r.task_id, p_budget.model, p_worker, r.attempt_no, p_budget.granted_at, p_budget.cell, v_config.rpm, c.lane, c.is_hot,
           nullif(p_budget.rpm, v_config.rpm), v_config.tpm, v_config.output_tpm, case when c.tokens is not null then v_config.token_mode end,
           c.bytes_estimate, c.input_charge, c.output_charge, c.tokens, c.output_tokens
      from generate_subscripts(v_rows, 1) i
     cross join lateral (select (v_rows[i]).*) r
     cross join lateral (select (v_taken[i]).*) c;
    return v_rows;
end
$$;
