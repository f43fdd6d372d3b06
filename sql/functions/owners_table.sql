-- What it does: finds the adopted table.
-- Returns: its oid.
-- Locks: none.
-- Why: by what the view llmqueue.task reads, which follows a table that is renamed.
create or replace function llmqueue.owners_table()
returns oid language plpgsql stable
set jit = off set plan_cache_mode = force_generic_plan set enable_seqscan = off set enable_hashjoin = off set enable_mergejoin = off as $$
begin
    return (select d.refobjid
              from pg_rewrite r
              join pg_depend d on d.classid = 'pg_rewrite'::regclass and d.objid = r.oid and d.refclassid = 'pg_class'::regclass
              join pg_class c on c.oid = d.refobjid
             where r.ev_class = 'llmqueue.task'::regclass and c.relkind = 'r' limit 1);
end
$$;
