-- What it does: stops all grants for one window, after a worker saw the database's clock step forward (I7).
-- Returns: nothing.
-- Locks: the row of llmqueue.limiter, then the advisory lock of every model, in the order of their names.
-- Why: when the clock jumps ahead, grants of the last minute leave the ledger too early, and a guard that was lowered
--   lately loses its grace period.
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
    'Stops all grants for one window after the clock stepped forward. For workers.';
