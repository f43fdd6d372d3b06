-- What it does: takes a worker that has drained off the list.
-- Returns: nothing.
-- Locks: the worker's row.
-- Why: its open attempts, if any are left, are then swept at once by the others.
create or replace function llmqueue.leave(p_worker uuid)
returns void language sql volatile
security definer set search_path = pg_catalog, pg_temp as $$
    delete from llmqueue.idle_worker where worker = p_worker;
    delete from llmqueue.worker where worker = p_worker;
$$;
comment on function llmqueue.leave is
    'Removes a worker that has drained. For workers.';
