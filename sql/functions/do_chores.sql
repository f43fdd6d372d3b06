-- What it does: the chores of a worker that are due: 'heartbeat', 'promote', 'sweep', 'prune', 'calibrate', 'idle',
--   'busy', 'drain'.
-- Returns: nothing.
-- Locks: see each.
-- Why: they ride along with a claim, so that an idle worker needs one query a second for all it does.
create or replace function llmqueue.do_chores(p_worker uuid, p_chores text[], p_running integer, p_now timestamptz default null)
returns void language plpgsql volatile as $$
begin
    if cardinality(p_chores) = 0 then
        return;
    end if;
    set constraints all immediate;   -- an owner's deferred trigger must raise where its row can be left out, with our rights
    if 'sweep' = any (p_chores) then
        perform llmqueue.check_epoch(null, p_now);   -- first: it may wait for every model's lock
    end if;
    if 'heartbeat' = any (p_chores) then
        perform llmqueue.heartbeat(p_worker, p_running, p_now);
    end if;
    if 'promote' = any (p_chores) then
        perform llmqueue.expire(500, p_now);   -- first: what is past its deadline need not be made ready
        perform llmqueue.promote(500, p_now);
    end if;
    if 'sweep' = any (p_chores) then
        perform llmqueue.sweep(p_worker, 500, p_now);
    end if;
    if 'prune' = any (p_chores) then
        perform llmqueue.prune_ledger(p_now);
    end if;
    if 'calibrate' = any (p_chores) then
        perform llmqueue.calibrate(p_now);
    end if;
    if 'drain' = any (p_chores) then
        update llmqueue.worker w set is_draining = true where w.worker = p_worker;
        delete from llmqueue.idle_worker i where i.worker = p_worker;
    end if;
    if 'idle' = any (p_chores) then
        insert into llmqueue.idle_worker (worker, idle_at) values (p_worker, clock_timestamp()) on conflict do nothing;
    elsif 'busy' = any (p_chores) then
        delete from llmqueue.idle_worker i where i.worker = p_worker;
    end if;
end
$$;
