-- What it does: says whether grants may have been lost since an epoch began.
-- Returns: the reason: 'system' (another cluster: a dump was restored), 'timeline' (a promoted standby, a
--   point-in-time recovery), or 'fence' (a worker was given a fence that this server does not know: an older copy of
--   the data); null if nothing was lost.
-- Locks: none.
-- Why: the timeline is read from the name of the current WAL file; pg_control_checkpoint() shows it only after the
--   first checkpoint. A restart or a crash recovery of the same server loses nothing: a grant is durable before its
--   worker knows of it. The sequence alone is not enough: after a crash it is up to 32 ahead. The newest attempt is
--   exact; an empty attempt log proves nothing.
create or replace function llmqueue_internal.end_of_epoch(p_epoch llmqueue.epoch, p_seen bigint)
returns text language plpgsql volatile as $$
declare
    v_nonsense constant bigint := 1000000000000000000::bigint;   -- no fence is so high
begin
    if p_epoch.timeline <> left(pg_walfile_name(pg_current_wal_lsn()), 8) then
        return case when p_epoch.system_identifier <> (select c.system_identifier from pg_control_system() c)
                    then 'system' else 'timeline' end;
    elsif p_epoch.system_identifier <> (select c.system_identifier from pg_control_system() c) then
        return 'system';
    elsif p_seen > p_epoch.fence_floor and p_seen < v_nonsense
          and (p_seen > (select s.last_value from llmqueue.fence_seq s)
               or p_seen > (select max(a.fence) from llmqueue.attempt a)) then
        return 'fence';
    end if;
    return null;
end
$$;
