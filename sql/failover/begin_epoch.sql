-- What it does: begins an epoch after state may have been lost: fences jump, every model's ledger starts full.
-- Returns: the number of the epoch that holds now.
-- Locks: the row of llmqueue.limiter, then every model's advisory lock, in the order of their names: as clock_stepped().
-- Why: what was granted last may not be known any more: one quiet minute rather than one overshoot (I7, I8). The fences go
--   beyond all that anybody may have been given, so that none is given twice: a thousand million are more than a day of any
--   fleet's. Of many that notice it at once the first does it; the others wait for its row, look again, and find it done.
create or replace function llmqueue_internal.begin_epoch(p_seen bigint)
returns integer language plpgsql volatile as $$
declare
    v_margin constant bigint := 1000000000::bigint;
    v_epoch llmqueue.epoch;
    v_because text;
    v_limiter llmqueue.limiter;
    v_model text;
    v_now timestamptz;
begin
    select l.* into strict v_limiter from llmqueue.limiter l for update;
    select e.* into strict v_epoch from llmqueue.epoch e order by e.epoch_no desc limit 1;
    v_because := llmqueue_internal.end_of_epoch(v_epoch, p_seen);
    if v_because is null then
        return v_epoch.epoch_no;
    end if;
    v_epoch.fence_floor := v_margin + greatest(case when p_seen < 1000000000000000000 then p_seen end, v_epoch.fence_floor, (select s.last_value from llmqueue.fence_seq s),
                                               (select max(a.fence) from llmqueue.attempt a));
    perform setval('llmqueue.fence_seq', v_epoch.fence_floor);
    for v_model in select c.model from llmqueue.model_config c order by c.model loop
        perform llmqueue_internal.fill_ledger(v_model);
    end loop;
    v_now := llmqueue_internal.clock();
    insert into llmqueue.epoch (epoch_no, because, system_identifier, timeline, fence_floor, began_at, quiet_until)
    select v_epoch.epoch_no + 1, v_because, c.system_identifier, left(pg_walfile_name(pg_current_wal_lsn()), 8),
           v_epoch.fence_floor, v_now,
           v_now + make_interval(secs => v_limiter.window_s + greatest(v_limiter.guard_s, v_limiter.guard_before_s) + 0.25)
      from pg_control_system() c;
    return v_epoch.epoch_no + 1;
end
$$;
