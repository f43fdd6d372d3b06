-- What it does: note_backend() for the worker's role: with the owner's rights, by the database's clock.
-- Returns: nothing.
-- Locks: those of note_backend().
-- Why: the clock and the ledger are out of a worker's reach: its role may execute worker_* and nothing else (I7).
create or replace function llmqueue.worker_note_backend(p_worker uuid, p_trouble text, p_for_s double precision)
returns void language plpgsql volatile
security definer set search_path = pg_catalog, pg_temp as $$
begin
    perform llmqueue.note_backend(p_worker, p_trouble, p_for_s);
end
$$;
