-- What it does: says how many more calls of a model may be in flight. p_from: no attempt of the model with a lower
--   fence is open; null: not known.
-- Returns: one row: cold, for tasks of any kind, and hot, for hot ones (at least as many); at least 0, a large number
--   when there is no limit; open_from: p_from for the next time.
-- Locks: none; the caller holds the model's advisory lock, so the answer can only be too small.
-- Why: counted from the open attempts of all workers, at most max_concurrency rows of a partial index. hot_share of the
--   slots (at least one of two) is kept for hot tasks and not lent: a cold call of two minutes would not give it back.
--   Index entries of attempts that have ended stay for as long as somebody's transaction might see them: without a
--   place to begin, each claim would pass over all of them (decision 47). A model's fences rise, since they are drawn
--   under its lock.
create or replace function llmqueue_internal.free_concurrency(
    p_model text, p_max_concurrency integer, p_hot_share double precision, p_from bigint default null,
    out cold integer, out hot integer, out open_from bigint)
language plpgsql stable
set jit = off set plan_cache_mode = force_generic_plan set enable_seqscan = off set enable_bitmapscan = off
set enable_sort = off as $$
declare
    v_drawn constant bigint := (select s.last_value from llmqueue.fence_seq s);   -- the model's next is higher
    v_open integer;
    v_cold integer;
    v_kept integer := case when p_max_concurrency < 2 or p_hot_share = 0 then 0
                           else greatest(1, floor(p_hot_share * p_max_concurrency))::integer end;
begin
    select count(*)::integer, (count(*) filter (where not open.is_hot))::integer, coalesce(min(open.fence), v_drawn)
      into v_open, v_cold, open_from
      from (select a.fence, a.is_hot from llmqueue.attempt a
             where a.model = p_model and a.fence >= coalesce(p_from, 0::bigint) and a.ended_at is null
             order by a.fence limit greatest(1, coalesce(p_max_concurrency, 1))) open;
    if p_max_concurrency is null then
        cold := 2147483647;
        hot := 2147483647;
        return;
    end if;
    hot := greatest(0, p_max_concurrency - v_open);
    cold := greatest(0, least(hot, p_max_concurrency - v_kept - v_cold));
end
$$;
