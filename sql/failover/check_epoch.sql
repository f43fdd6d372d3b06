-- What it does: detects a failover or a restore, and begins a new epoch if the ledger may have lost grants: the fences
--   jump, and the ledger of every model starts full.
--   p_seen: the highest fence that the caller was ever given.
-- Returns: the number of the current epoch. Raises 25006 where nothing can be written: on a standby, or on a server set
--   read-only.
-- Locks: none, unless an epoch begins: then the row of llmqueue.limiter, then the advisory lock of every model in the
--   order of their names, as clock_stepped().
-- Why: called before anything is granted or swept, in the same statement: a worker may be connected to a promoted
--   standby, or to a restored server, without having noticed. The check takes 30 to 45 µs, most of it to read the
--   control file.
--   The last grants may be lost: one quiet minute rather than one overshoot (I7, I8). The new fences are higher than
--   any that may have been given out, so that none is given out twice: a thousand million are more than any fleet draws
--   in a day. Of many callers that detect it at once the first begins the epoch; the others wait for the row of the
--   limiter, check again, and find it begun.
create or replace function llmqueue_internal.check_epoch(p_seen bigint)
returns integer language plpgsql volatile as $$
declare
    v_margin constant bigint := 1000000000::bigint;
    v_nonsense constant bigint := 1000000000000000000::bigint;   -- no fence is so high, and the sum would overflow
    v_epoch llmqueue.epoch;
    v_because text;
    v_quiet_s double precision;
    v_model text;
    v_now timestamptz;
begin
    if current_setting('transaction_read_only') = 'on' then
        raise exception 'the database takes no writes' using errcode = '25006',
            hint = 'it is a standby, or default_transaction_read_only is on';
    end if;
    select e.* into strict v_epoch from llmqueue.epoch e order by e.epoch_no desc limit 1;
    if llmqueue_internal.end_of_epoch(v_epoch, p_seen) is null then
        return v_epoch.epoch_no;
    end if;
    select l.window_s + greatest(l.guard_s, l.guard_before_s) + llmqueue_internal.cell_s() into strict v_quiet_s
      from llmqueue.limiter l for update;
    select e.* into strict v_epoch from llmqueue.epoch e order by e.epoch_no desc limit 1;
    v_because := llmqueue_internal.end_of_epoch(v_epoch, p_seen);
    if v_because is null then
        return v_epoch.epoch_no;
    end if;
    v_epoch.fence_floor := v_margin + greatest(
        case when p_seen < v_nonsense then p_seen end, v_epoch.fence_floor,
        (select s.last_value from llmqueue.fence_seq s), (select max(a.fence) from llmqueue.attempt a));
    perform setval('llmqueue.fence_seq', v_epoch.fence_floor);
    for v_model in select c.model from llmqueue.model_config c order by c.model loop
        perform llmqueue_internal.fill_ledger(v_model);
    end loop;
    v_now := llmqueue_internal.clock();
    insert into llmqueue.epoch (epoch_no, because, system_identifier, timeline, fence_floor, began_at, quiet_until)
    select v_epoch.epoch_no + 1, v_because, c.system_identifier, left(pg_walfile_name(pg_current_wal_lsn()), 8),
           v_epoch.fence_floor, v_now, v_now + make_interval(secs => v_quiet_s)
      from pg_control_system() c;
    return v_epoch.epoch_no + 1;
end
$$;
