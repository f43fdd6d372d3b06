-- Epochs: after a failover or a restore the ledger and the fences may be behind what was granted. Insert-only; the row with
-- the highest number holds. The first one says which server this schema was installed on.
create table llmqueue.epoch (
    epoch_no integer primary key,
    because text not null check (because in ('installed', 'system', 'timeline', 'fence')),
    system_identifier bigint not null,
    timeline text not null,               -- as in the names of WAL files: eight hexadecimal digits
    fence_floor bigint not null,          -- fences of this epoch are higher; lower ones prove nothing any more
    began_at timestamptz,                 -- null: the first
    quiet_until timestamptz               -- nothing is granted before: every ledger was filled
);
comment on table llmqueue.epoch is 'Times between failovers and restores that may have lost state; each but the first began with a quiet minute.';
insert into llmqueue.epoch (epoch_no, because, system_identifier, timeline, fence_floor)
select 1, 'installed', c.system_identifier, left(pg_walfile_name(pg_current_wal_lsn()), 8), 0
  from pg_control_system() c;

drop function if exists llmqueue.read_turns(jsonb);
