-- What it does: says which triggers of the owner run at an UPDATE of the tasks table.
-- Returns: one row: has_any, before or after, for rows or statements; has_row_after, those that run after each row.
-- Locks: none.
-- Why: without any, a row is as it was written, and settle() need not look again. Rows that change in one statement are
--   all changed when the first trigger after a row runs: a trigger that looks at the other rows ("the last of a job
--   inserts the next") would then see what no row by itself has brought about (decision 21). The table is found by what
--   the view llmqueue.task reads, which follows a table that is renamed.
create or replace function llmqueue_internal.update_triggers(out has_any boolean, out has_row_after boolean)
language plpgsql stable as $$
declare
    v_row constant integer := 1;
    v_before constant integer := 2;
    v_update constant integer := 16;
begin
    select count(*) > 0, coalesce(bool_or(g.tgtype::integer & (v_row | v_before) = v_row), false)
        into has_any, has_row_after
      from pg_trigger g
     where not g.tgisinternal and g.tgenabled in ('O', 'A') and g.tgtype::integer & v_update = v_update
       and g.tgrelid = (select d.refobjid
                          from pg_rewrite r
                          join pg_depend d on d.classid = 'pg_rewrite'::regclass and d.objid = r.oid
                           and d.refclassid = 'pg_class'::regclass and d.refobjid <> r.ev_class
                         where r.ev_class = 'llmqueue.task'::regclass limit 1);
end
$$;
