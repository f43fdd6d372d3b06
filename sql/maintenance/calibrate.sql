-- What it does: learns from recent answers how many input tokens a prompt really has, and how many tokens an answer.
-- Returns: how many models were calibrated; 0 within 20 s of the last time.
-- Locks: an advisory lock of its own (skipped if another worker holds it), then rows of model_state.
-- Why: mean and 95th percentile of actual / estimate over up to 1,000 answers of each model among the last 20,000
--   attempts; at least 20 answers, since a few say little. The log is read backwards along the primary key, so its size
--   does not matter. The tokens that every prompt of a model has besides its own, such as a system prompt, are the
--   intercept of the regression line. A ratio above 4 or below a quarter cannot come from the language of the prompts.
create or replace function llmqueue_internal.calibrate()
returns integer language plpgsql volatile as $$
declare
    v_least constant double precision := 0.25::double precision;
    v_most constant double precision := 4::double precision;
    v_models integer;
begin
    if not exists (select from llmqueue.model_config c where coalesce(c.tpm, c.tpd, c.output_tpm) is not null)
       or exists (select from llmqueue.model_state s
                   where s.calibrated_at > llmqueue_internal.clock() - interval '20 seconds')
       or not pg_try_advisory_xact_lock(llmqueue_internal.lock_space() + 1, 0) then
        return 0;
    end if;
    with answer as (
        select last.model, last.input_tokens::double precision, last.bytes_estimate::double precision,
               last.char_class_estimate::double precision, last.output_tokens::double precision,
               row_number() over (partition by last.model order by last.fence desc) as no
          from (select a.* from llmqueue.attempt a order by a.fence desc limit 20000) last
         where last.outcome = 'completed' and last.input_tokens > 0 and last.output_tokens is not null
           and last.bytes_estimate is not null
    ), fitted as (
        select x.*, least(min(x.input_tokens) over of_model,
                          case when regr_intercept(x.input_tokens, x.bytes_estimate) over of_model > 100
                               then regr_intercept(x.input_tokens, x.bytes_estimate) over of_model else 0 end)
                        as overhead
          from answer x
         where x.no <= 1000
        window of_model as (partition by x.model)
    ), compared as (
        select f.model, f.overhead, f.output_tokens,
               greatest(0, f.input_tokens - f.overhead) / nullif(f.bytes_estimate, 0) as bytes_ratio,
               f.input_tokens / nullif(f.char_class_estimate, 0) as char_class_ratio
          from fitted f
    )
    insert into llmqueue.model_state as s (model, input_overhead, bytes_ratio_mean, bytes_ratio_p95,
                                           char_class_ratio_mean, char_class_ratio_p95, output_mean, output_sd,
                                           samples, calibrated_at)
    select c.model, max(c.overhead),
           least(v_most, greatest(v_least, avg(c.bytes_ratio))),
           least(v_most, greatest(v_least, percentile_cont(0.95) within group (order by c.bytes_ratio))),
           least(v_most, greatest(v_least, avg(c.char_class_ratio))),
           least(v_most, greatest(v_least, percentile_cont(0.95) within group (order by c.char_class_ratio))),
           avg(c.output_tokens), coalesce(stddev_samp(c.output_tokens), 0), count(*), llmqueue_internal.clock()
      from compared c
     group by c.model having count(*) >= 20
     order by c.model
    on conflict (model) do update
       set input_overhead = excluded.input_overhead,
           bytes_ratio_mean = excluded.bytes_ratio_mean,
           bytes_ratio_p95 = excluded.bytes_ratio_p95,
           char_class_ratio_mean = excluded.char_class_ratio_mean,
           char_class_ratio_p95 = excluded.char_class_ratio_p95,
           output_mean = excluded.output_mean, output_sd = excluded.output_sd,
           samples = excluded.samples, calibrated_at = excluded.calibrated_at;
    get diagnostics v_models = row_count;
    return v_models;
end
$$;
