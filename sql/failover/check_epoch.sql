-- What it does: sees to it that this is the server, and the state, of which the last grants were made; else begins an epoch.
--   p_seen: the highest fence that the caller was ever given.
-- Returns: the number of the epoch. Raises 25006 where nothing can be written: a standby, or a server set read-only.
-- Locks: none, unless an epoch begins: see begin_epoch().
-- Why: before anything is granted or swept, in the same statement: a worker may be connected to a promoted standby, or to a
--   restored server, without having noticed. Costs 30 to 45 µs, most of it for the control file.
create or replace function llmqueue_internal.check_epoch(p_seen bigint)
returns integer language plpgsql volatile as $$
declare
    v_epoch llmqueue.epoch;
begin
    if current_setting('transaction_read_only') = 'on' then
        raise exception 'the database takes no writes' using errcode = '25006',
            hint = 'it is a standby, or default_transaction_read_only is on';
    end if;
    select e.* into strict v_epoch from llmqueue.epoch e order by e.epoch_no desc limit 1;
    if llmqueue_internal.end_of_epoch(v_epoch, p_seen) is null then
        return v_epoch.epoch_no;
    end if;
    return llmqueue_internal.begin_epoch(p_seen);
end
$$;
