-- What it does: says by what the estimate of a prompt's tokens is multiplied, and how many output tokens to expect.
--   p_from: no attempt of the model with a lower fence is open; null: not known.
-- Returns: one row: bytes_ratio, input_overhead (tokens that every prompt has besides), and output, null when nothing
--   has been learned.
-- Locks: none.
-- Why: for a limit on the real use (actual, the output of split) the sum over all calls in flight counts, so the mean
--   is reserved and a margin of two standard deviations of that sum, shared by the calls in flight (at most 400 are
--   counted). What a provider counts by a rule of its own must not be underestimated: the 95th percentile of the input.
create or replace function llmqueue_internal.expected_tokens(
    p_config llmqueue.model_config, p_from bigint default null, out bytes_ratio double precision,
    out input_overhead double precision, out output double precision)
language plpgsql stable set jit = off set plan_cache_mode = force_generic_plan set enable_seqscan = off as $$
declare
    v_state llmqueue.model_state;
    v_in_flight integer;
begin
    select s.* into v_state from llmqueue.model_state s where s.model = p_config.model;
    bytes_ratio := coalesce(case p_config.token_mode when 'actual' then v_state.bytes_ratio_mean
                                                  else v_state.bytes_ratio_p95 end, 1);
    input_overhead := coalesce(v_state.input_overhead, 0);
    if p_config.token_mode in ('actual', 'split') and v_state.output_mean is not null then
        select count(*)::integer into v_in_flight
          from (select from llmqueue.attempt a where a.model = p_config.model and a.fence >= coalesce(p_from, 0::bigint)
                   and a.ended_at is null limit 400) open;
        output := v_state.output_mean + 2 * v_state.output_sd / sqrt(greatest(1, v_in_flight));
    end if;
end
$$;
