-- What it does: says how many more calls of a model may be in flight.
-- Returns: one row: cold, for tasks of any kind, and hot, for hot ones (at least as many); at least 0, a large number when
--   there is no limit.
-- Locks: none; the caller holds the model's advisory lock, so the answer can only be too small.
-- Why: counted from the open attempts of all workers, at most max_concurrency rows of a partial index. hot_share of the
--   slots (at least one of two) is kept for hot tasks and not lent: a cold call of two minutes would not give it back.
create or replace function llmqueue.room(
    p_model text, p_max_concurrency integer, p_hot_share double precision, out cold integer, out hot integer)
language plpgsql stable set jit = off set plan_cache_mode = force_generic_plan set enable_seqscan = off as $$
declare
    v_open integer;
    v_cold integer;
    v_kept integer := case when p_max_concurrency < 2 or p_hot_share = 0 then 0
                           else greatest(1, floor(p_hot_share * p_max_concurrency))::integer end;
begin
    if p_max_concurrency is null then
        cold := 2147483647;
        hot := 2147483647;
        return;
    end if;
    select count(*)::integer, (count(*) filter (where not open.is_hot))::integer into v_open, v_cold
      from (select a.is_hot from llmqueue.attempt a where a.model = p_model and a.ended_at is null limit p_max_concurrency) open;
    hot := p_max_concurrency - v_open;
    cold := greatest(0, least(hot, p_max_concurrency - v_kept - v_cold));
end
$$;
