-- What it does: names the two indexes from which tasks are claimed.
-- Returns: their oids; empty while they are missing.
-- Locks: none.
-- Why: claim() asks the server how many entries it has read of them. By name alone: of another table's indexes it reads none.
create or replace function llmqueue_internal.queue_indexes()
returns oid[] language plpgsql stable
set jit = off set plan_cache_mode = force_generic_plan set enable_seqscan = off set enable_hashjoin = off set enable_mergejoin = off as $$
begin
    return array(select c.oid from pg_class c where c.relname in ('llmqueue_ready', 'llmqueue_oldest') and c.relkind = 'i');
end
$$;
