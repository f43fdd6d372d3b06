-- What it does: says that a worker lives, and rings its own bell so that its listener proves itself.
-- Returns: true; raises LQ002 when the worker is not known (it was swept; it registers again).
-- Locks: the worker's row.
-- Why: one row per worker, not per task (I9). A gap of more than half a lease (beats come four times a lease at the least), or a clock that stepped back by so much,
--   starts beating_since anew: such a worker may have slept while others were fine, or be the first one back after an
--   outage that the others' leases have just not survived, and must not sweep them.
create or replace function llmqueue.heartbeat(p_worker uuid, p_running integer)
returns boolean language plpgsql volatile
security definer set search_path = pg_catalog, pg_temp as $$
declare
    v_now timestamptz := llmqueue_internal.clock();
begin
    update llmqueue.worker w
       set beating_since = case when abs(extract(epoch from v_now - w.heartbeat_at)) > w.lease_s / 2 then v_now else w.beating_since end,
           heartbeat_at = case when abs(extract(epoch from v_now - w.heartbeat_at)) >= w.lease_s then v_now else greatest(v_now, w.heartbeat_at) end,
           running = p_running
     where w.worker = p_worker;
    if not found then
        raise exception 'worker % is not registered', p_worker using errcode = 'LQ002';
    end if;
    perform pg_notify('llmqueue_' || replace(p_worker::text, '-', ''), '');
    return true;
end
$$;
comment on function llmqueue.heartbeat is
    'Notes that a worker lives. For workers.';
