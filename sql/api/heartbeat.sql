-- What it does: records that a worker is alive, and notifies the worker's own channel.
-- Returns: true; raises LQ002 when the worker is not known: it was swept, and registers again.
-- Locks: the worker's row.
-- Why: one row per worker, not per task (I9). The notification proves to the worker that its listening connection
--   works. After a gap of more than half a lease (a worker sends at least four heartbeats per lease), or a step back
--   of the clock by as much, beating_since starts anew: the worker may have slept while others were fine, or be the
--   first one back after an outage that the leases of the others did not survive, and must not sweep them.
create or replace function llmqueue.heartbeat(p_worker uuid, p_running integer)
returns boolean language plpgsql volatile
security definer set search_path = pg_catalog, pg_temp as $$
declare
    v_now constant timestamptz := llmqueue_internal.clock();
begin
    update llmqueue.worker w
       set beating_since = case when abs(extract(epoch from v_now - w.heartbeat_at)) > w.lease_s / 2 then v_now
                                else w.beating_since end,
           heartbeat_at = case when abs(extract(epoch from v_now - w.heartbeat_at)) >= w.lease_s then v_now
                               else greatest(v_now, w.heartbeat_at) end,
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
    'Records that a worker is alive. For workers.';
