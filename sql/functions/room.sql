-- What it does: says how many more calls of a model may be in flight.
-- Returns: max_concurrency − open attempts, at least 0; a large number when there is no limit.
-- Locks: none; the caller holds the model's advisory lock, so the answer can only be too small.
-- Why: counted from the open attempts of all workers, at most max_concurrency rows of a partial index.
create or replace function llmqueue.room(p_model text, p_max_concurrency integer)
returns integer language plpgsql stable set jit = off set enable_seqscan = off as $$
begin
    if p_max_concurrency is null then
        return 2147483647;
    end if;
    return p_max_concurrency - (
        select count(*)::integer from (select from llmqueue.attempt a where a.model = p_model and a.ended_at is null
                               limit p_max_concurrency) open);
end
$$;
