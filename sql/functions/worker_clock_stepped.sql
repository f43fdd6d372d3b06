-- What it does: clock_stepped() for the worker's role: with the owner's rights, by the database's clock.
-- Returns: what clock_stepped() returns.
-- Locks: those of clock_stepped().
-- Why: the clock and the ledger are out of a worker's reach: its role may execute worker_* and nothing else (I7).
create or replace function llmqueue.worker_clock_stepped()
returns void language plpgsql volatile
security definer set search_path = pg_catalog, pg_temp as $$
begin
    perform llmqueue.clock_stepped();
end
$$;
