-- What it does: says which search path the owner's sessions have, as the first `init` saw it; pg_catalog first, pg_temp
--   last.
-- Returns: the value of search_path.
-- Locks: none.
-- Why: API functions run with the owner's rights, and so do the triggers of the tasks table then. Under the worker's
--   path somebody could plant what the triggers name; under an empty one they would not find it.
create or replace function llmqueue_internal.owners_path()
returns text language plpgsql stable as $$
begin
    return concat_ws(', ', 'pg_catalog', (select nullif(array_to_string(array(
        select quote_ident(p.name) from unnest(m.search_path) p(name)), ', '), '') from llmqueue.mapping m), 'pg_temp');
end
$$;
