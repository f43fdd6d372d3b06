-- What it does: closes all models for one window after a worker saw the database's clock step forward (I7).
-- Returns: nothing.
-- Locks: the row of llmqueue.limiter, then every model's advisory lock, in the order of their names.
-- Why: a clock that jumps ahead lets grants of the last minute leave the ledger too early, and those of before a change of
--   the guard its time of grace.
create or replace function llmqueue.clock_stepped()
returns void language plpgsql volatile
security definer set search_path = pg_catalog, pg_temp as $$
declare
    v_model text;
begin
    update llmqueue.limiter l
       set guard_kept_until = greatest(l.guard_kept_until,
               llmqueue_internal.clock() + make_interval(secs => l.window_s + 2 * l.guard_before_s + 1))
     where l.guard_before_s > l.guard_s;
    for v_model in select c.model from llmqueue.model_config c order by c.model loop
        perform llmqueue_internal.fill_ledger(v_model);
    end loop;
end
$$;
comment on function llmqueue.clock_stepped is
    'Fills the ledger of every model after a forward step of the clock: one quiet minute. For workers.';
