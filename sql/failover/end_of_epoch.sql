-- What it does: tells whether state may have been lost since an epoch began.
-- Returns: why: 'system' (another cluster: a dump was restored), 'timeline' (a promoted standby, a point-in-time recovery), or
--   'fence' (somebody was given a fence that this server knows nothing of: an older copy of the data); null if nothing was.
-- Locks: none.
-- Why: the timeline comes from the name of the current WAL file; pg_control_checkpoint() tells it only after the first
--   checkpoint. A restart or a crash recovery of the same server changes nothing: a grant is durable before it is known.
--   The sequence alone is not enough: after a crash it is up to 32 ahead. The newest attempt is exact; an empty attempt
--   log proves nothing.
create or replace function llmqueue_internal.end_of_epoch(p_epoch llmqueue.epoch, p_seen bigint)
returns text language plpgsql volatile as $$
begin
    if p_epoch.timeline <> left(pg_walfile_name(pg_current_wal_lsn()), 8) then
        return case when p_epoch.system_identifier <> (select c.system_identifier from pg_control_system() c) then 'system' else 'timeline' end;
    elsif p_epoch.system_identifier <> (select c.system_identifier from pg_control_system() c) then
        return 'system';
    elsif p_seen > p_epoch.fence_floor and p_seen < 1000000000000000000   -- no number of ours is that high: nonsense, and it would overflow
          and (p_seen > (select s.last_value from llmqueue.fence_seq s)
               or p_seen > (select max(a.fence) from llmqueue.attempt a)) then
        return 'fence';
    end if;
    return null;
end
$$;
