-- What it does: records what keeps a worker from calling the backend, and since how many seconds; null: nothing does.
-- Returns: nothing.
-- Locks: the worker's row.
-- Why: only workers know whether the backend can be reached, and `why` and `status` run elsewhere. Seconds and not a
--   time, since no clock of a worker is compared with the database's.
create or replace function llmqueue.report_backend(
    p_worker uuid, p_trouble text, p_for_s double precision)
returns void language plpgsql volatile
security definer set search_path = pg_catalog, pg_temp as $$
begin
    update llmqueue.worker w
       set backend_trouble = left(p_trouble, 500),
           backend_troubled_at = case when p_trouble is not null
               then llmqueue_internal.clock() - make_interval(secs => greatest(0, p_for_s)) end
     where w.worker = p_worker;
end
$$;
comment on function llmqueue.report_backend is
    'Records what keeps a worker from calling the backend. For workers.';
