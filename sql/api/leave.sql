-- What it does: removes a worker that has drained from the list of workers.
-- Returns: nothing.
-- Locks: the worker's row.
-- Why: if it has left open attempts, the other workers sweep them at once.
create or replace function llmqueue.leave(p_worker uuid)
returns void language sql volatile
security definer set search_path = pg_catalog, pg_temp as $$
    delete from llmqueue.idle_worker where worker = p_worker;
    delete from llmqueue.worker where worker = p_worker;
$$;
comment on function llmqueue.leave is
    'Removes a worker that has drained. For workers.';
