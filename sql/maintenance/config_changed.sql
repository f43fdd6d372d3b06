-- What it does: rings the bell after a change of model_config or pool_member, so that a worker that sleeps until a quota frees looks again.
-- Returns: null; the trigger is AFTER … FOR EACH STATEMENT.
-- Locks: none.
-- Why: the change itself holds from the next grant on, because every grant reads the row; the bell only ends the wait.
create or replace function llmqueue_internal.config_changed()
returns trigger language plpgsql volatile as $$
begin
    if tg_op in ('DELETE', 'TRUNCATE') and tg_table_name = 'model_config' then
        -- who creates it again does not mean what the machine had learned of it
        delete from llmqueue.model_state s where not exists (select from llmqueue.model_config c where c.model = s.model);
    end if;
    perform pg_notify('llmqueue', 'config');
    return null;
end
$$;
create or replace trigger config_changed after insert or update or delete or truncate on llmqueue.model_config
    for each statement execute function llmqueue_internal.config_changed();
create or replace trigger config_changed after insert or update or delete or truncate on llmqueue.pool_member
    for each statement execute function llmqueue_internal.config_changed();
