-- What it does: learns from the last answers how many tokens a prompt really has, and how many an answer.
-- Returns: how many models were calibrated.
-- Locks: an advisory lock of its own (another worker at it is enough), then rows of model_state.
-- Why: mean and 95th percentile of actual / estimate over up to 1,000 answers of each model among the last 20,000 attempts; at
--   least 20, since a few say little. Read backwards by the primary key, whatever the size of the log.
create or replace function llmqueue_internal.calibrate()
returns integer language plpgsql volatile set jit = off set enable_seqscan = off as $$
declare
    v_models integer;
begin
    if not exists (select from llmqueue.model_config c where coalesce(c.tpm, c.tpd, c.output_tpm) is not null)
       or exists (select from llmqueue.model_state s where s.calibrated_at > llmqueue_internal.clock() - interval '20 seconds')
       or not pg_try_advisory_xact_lock(llmqueue_internal.lock_space() + 1, 0) then
        return 0;
    end if;
    insert into llmqueue.model_state as s (model, input_overhead, bytes_ratio_mean, bytes_ratio_p95, char_class_ratio_mean, char_class_ratio_p95, output_mean,
                                           output_sd, samples, calibrated_at)
    -- a ratio beyond 4 or below a quarter is no matter of language; what every prompt has besides is the line's intercept
    select x.model, max(x.overhead), least(4, greatest(0.25, avg(x.bytes_ratio))),
           least(4, greatest(0.25, percentile_cont(0.95) within group (order by x.bytes_ratio))),
           least(4, greatest(0.25, avg(x.char_class_ratio))), least(4, greatest(0.25, percentile_cont(0.95) within group (order by x.char_class_ratio))),
           avg(x.output_tokens), coalesce(stddev_samp(x.output_tokens), 0), count(*), llmqueue_internal.clock()
      from (select y.model, y.overhead, y.output_tokens, greatest(0, y.input_tokens - y.overhead) / nullif(y.bytes_estimate, 0) as bytes_ratio,
                   y.input_tokens / nullif(y.char_class_estimate, 0) as char_class_ratio
              from (select z.*, least(min(z.input_tokens) over of_model,
                                      case when regr_intercept(z.input_tokens, z.bytes_estimate) over of_model > 100
                                           then regr_intercept(z.input_tokens, z.bytes_estimate) over of_model else 0 end) as overhead
                      from (select last.model, last.input_tokens::double precision, last.bytes_estimate::double precision,
                                   last.char_class_estimate::double precision, last.output_tokens::double precision,
                                   row_number() over (partition by last.model order by last.fence desc) as recent
                              from (select a.* from llmqueue.attempt a order by a.fence desc limit 20000) last
                             where last.outcome = 'completed' and last.input_tokens > 0 and last.output_tokens is not null
                               and last.bytes_estimate is not null) z
                     where z.recent <= 1000
                    window of_model as (partition by z.model)) y) x
     group by x.model having count(*) >= 20
     order by x.model
    on conflict (model) do update
       set input_overhead = excluded.input_overhead, bytes_ratio_mean = excluded.bytes_ratio_mean, bytes_ratio_p95 = excluded.bytes_ratio_p95,
           char_class_ratio_mean = excluded.char_class_ratio_mean, char_class_ratio_p95 = excluded.char_class_ratio_p95,
           output_mean = excluded.output_mean, output_sd = excluded.output_sd,
           samples = excluded.samples, calibrated_at = excluded.calibrated_at;
    get diagnostics v_models = row_count;
    return v_models;
end
$$;
