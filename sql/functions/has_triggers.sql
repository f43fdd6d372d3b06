-- What it does: says whether triggers of the owner's run at an UPDATE of the tasks table, before or after, for rows or statements.
-- Returns: true or false.
-- Locks: none.
-- Why: without any, what was written is what is there, and settle() need not look again.
create or replace function llmqueue.has_triggers()
returns boolean language plpgsql stable
set jit = off set plan_cache_mode = force_generic_plan set enable_seqscan = off set enable_hashjoin = off set enable_mergejoin = off as $$
declare
    v_update constant integer := 16;
begin
    return exists (
        select from pg_trigger g
         where g.tgrelid = llmqueue.owners_table() and not g.tgisinternal and g.tgenabled in ('O', 'A')
           and g.tgtype::integer & v_update = v_update);
end
$$;
