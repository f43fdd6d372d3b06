-- What it does: lowers the learned ceiling of calls per minute after a 429 that came although the limit was kept.
-- Returns: nothing.
-- Locks: the model's row of model_state, which the caller holds.
-- Why: to four fifths of what was used in the last minute, so that it bites whatever the reason was, but at most by half.
create or replace function llmqueue_internal.cut_rpm(p_model text, p_now timestamptz)
returns void language plpgsql volatile as $$
begin
    update llmqueue.model_state s
       set rpm_ceiling = greatest(1, x.now_at / 2, 0.8 * least(x.now_at, llmqueue_internal.count_calls(p_model, p_now))), rpm_cut_at = p_now
      from (select llmqueue_internal.effective_rpm(c.model, c.rpm, p_now)::double precision as now_at
              from llmqueue.model_config c where c.model = p_model) x
     where s.model = p_model;
end
$$;
