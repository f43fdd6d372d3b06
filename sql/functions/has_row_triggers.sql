-- What it does: says whether triggers of the owner's run after each UPDATE of a row of the tasks table.
-- Returns: true or false.
-- Locks: none.
-- Why: rows that change in one statement are all changed when the first of these triggers runs: one that looks at the other
--   rows ("the last of a job inserts the next") would then see what no row by itself has brought about (decision 21).
create or replace function llmqueue.has_row_triggers()
returns boolean language plpgsql stable
set jit = off set plan_cache_mode = force_generic_plan set enable_seqscan = off set enable_hashjoin = off set enable_mergejoin = off as $$
declare
    v_row constant integer := 1;
    v_before constant integer := 2;
    v_update constant integer := 16;
begin
    return exists (
        select from pg_trigger g
         where g.tgrelid = llmqueue.owners_table() and not g.tgisinternal and g.tgenabled in ('O', 'A')
           and g.tgtype::integer & (v_row | v_before | v_update) = v_row | v_update);
end
$$;
