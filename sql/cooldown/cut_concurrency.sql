-- What it does: lowers the learned ceiling of calls in flight after a 503, a 529 or a connection that could not be made.
-- Returns: nothing.
-- Locks: the model's row of model_state.
-- Why: to seven tenths of what is in flight, which is what was too much; at most 10,000 are counted.
create or replace function llmqueue_internal.cut_concurrency(p_model text, p_now timestamptz)
returns void language plpgsql volatile set jit = off set enable_seqscan = off as $$
begin
    update llmqueue.model_state s
       set concurrency_ceiling = greatest(1, floor(0.7 * (
               select count(*) from (select from llmqueue.attempt a where a.model = p_model and a.ended_at is null limit 10000) open))),
           concurrency_cut_at = p_now
     where s.model = p_model;
end
$$;
