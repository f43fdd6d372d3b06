-- What it does: says which search path the owner's sessions have, as the first `init` saw it; pg_catalog first, pg_temp last.
-- Returns: the value of search_path.
-- Locks: none.
-- Why: the functions for the worker's role run with the owner's rights, and so do the triggers of the tasks table then. Under
--   the worker's path somebody could plant what they name; under none they would not find it.
create or replace function llmqueue_internal.owners_path()
returns text language plpgsql stable as $$
begin
    return concat_ws(', ', 'pg_catalog', (select string_agg(quote_ident(p.name), ', ' order by p.no)
                                            from llmqueue.mapping m, unnest(m.search_path) with ordinality p(name, no)), 'pg_temp');
end
$$;
