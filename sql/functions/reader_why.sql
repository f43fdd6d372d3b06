-- What it does: why() for the reader's role: with the owner's rights, by the database's clock.
-- Returns: what why() returns.
-- Locks: none.
-- Why: it needs the size of a prompt, the ledger and the workers' rows; its reader gets sentences and may read none of these.
create or replace function llmqueue.reader_why(p_task_id llmqueue.task_id)
returns table (state text, reason text, until_at timestamptz, model text, detail jsonb) language plpgsql stable
security definer set search_path = pg_catalog, pg_temp as $$
begin
    return query select * from llmqueue.why(p_task_id);
end
$$;
