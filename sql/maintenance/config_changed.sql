-- What it does: notifies waiting workers of a change of model_config or pool_member.
-- Returns: null; the trigger is AFTER … FOR EACH STATEMENT.
-- Locks: rows of model_state, after a model was deleted.
-- Why: the change itself holds from the next grant on, because every grant reads the row; without the notification a
--   worker would sleep until the quota that it waits for is free. The learned state of a deleted model goes with it: it
--   says nothing about a new model of the same name.
create or replace function llmqueue_internal.config_changed()
returns trigger language plpgsql volatile as $$
begin
    if tg_op in ('DELETE', 'TRUNCATE') and tg_table_name = 'model_config' then
        delete from llmqueue.model_state s
         where not exists (select from llmqueue.model_config c where c.model = s.model);
    end if;
    perform pg_notify('llmqueue', 'config');
    return null;
end
$$;
create or replace trigger config_changed after insert or update or delete or truncate on llmqueue.model_config
    for each statement execute function llmqueue_internal.config_changed();
create or replace trigger config_changed after insert or update or delete or truncate on llmqueue.pool_member
    for each statement execute function llmqueue_internal.config_changed();
