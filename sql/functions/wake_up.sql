-- What it does: rings the bell after an INSERT into the tasks table, if a worker waits for work.
-- Returns: null; the trigger is AFTER … FOR EACH STATEMENT.
-- Locks: none; reads a table of at most a row per worker, writes nothing, never raises.
-- Why: an insert-only role has no rights on our schema, hence SECURITY DEFINER with a fixed search_path. Each NOTIFY
--   serialises commits in the whole cluster, so none is sent while all workers are busy (I17). A missed one costs at
--   most a second: the poll is the truth.
create or replace function llmqueue.wake_up()
returns trigger language plpgsql volatile security definer set search_path = pg_catalog, pg_temp as $$
begin
    if exists (select from llmqueue.idle_worker) then
        perform pg_notify('llmqueue', 'task');
    end if;
    return null;
exception when others then
    return null;
end
$$;
