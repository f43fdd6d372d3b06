-- What it does: runs the maintenance that a worker says is due: 'heartbeat', 'promote', 'sweep', 'prune', 'calibrate',
--   'idle', 'busy', 'drain'.
-- Returns: nothing.
-- Locks: see the functions of each.
-- Why: maintenance is a part of a claim, so that an idle worker needs one query a second for everything. The planner
--   settings hold for all that it calls; sort and bitmap scans are on again, which a claim forbids: else a sweep reads
--   the whole attempt log in the order of its tasks.
create or replace function llmqueue.maintain(p_worker uuid, p_maintenance text[], p_running integer)
returns void language plpgsql volatile
security definer set search_path = pg_catalog, pg_temp
set jit = off set plan_cache_mode = force_generic_plan
set enable_seqscan = off set enable_hashjoin = off set enable_mergejoin = off
set enable_sort = on set enable_bitmapscan = on as $$
begin
    perform set_config('search_path', llmqueue_internal.owners_path(), true);   -- until this function ends
    if cardinality(p_maintenance) = 0 then
        return;
    end if;
    -- a deferred trigger of the owner must raise inside, where its row can be quarantined, and with our rights
    set constraints all immediate;
    if 'sweep' = any (p_maintenance) then
        perform llmqueue_internal.check_epoch(null);   -- first: it may wait for the lock of every model
    end if;
    if 'heartbeat' = any (p_maintenance) then
        perform llmqueue.heartbeat(p_worker, p_running);
    end if;
    if 'promote' = any (p_maintenance) then
        perform llmqueue_internal.expire(500);   -- first: a task past its deadline need not be made ready
        perform llmqueue_internal.promote(500);
    end if;
    if 'sweep' = any (p_maintenance) then
        perform llmqueue_internal.sweep(p_worker, 500);
    end if;
    if 'prune' = any (p_maintenance) then
        perform llmqueue_internal.prune_ledger();
    end if;
    if 'calibrate' = any (p_maintenance) then
        perform llmqueue_internal.calibrate();
    end if;
    if 'drain' = any (p_maintenance) then
        update llmqueue.worker w set is_draining = true where w.worker = p_worker;
        delete from llmqueue.idle_worker i where i.worker = p_worker;
    end if;
    if 'idle' = any (p_maintenance) then
        insert into llmqueue.idle_worker (worker, idle_at)
        values (p_worker, llmqueue_internal.clock()) on conflict do nothing;
    elsif 'busy' = any (p_maintenance) then
        delete from llmqueue.idle_worker i where i.worker = p_worker;
    end if;
end
$$;
comment on function llmqueue.maintain is
    'Runs the maintenance that is due: heartbeat, promote, sweep, prune, calibrate. For workers.';
