-- What it does: names the oldest release whose programs still work with this schema.
-- Returns: the schema version which that release installed. A program that knows only older versions ends; one that
--   knows this version or a newer one goes on.
-- Locks: none.
-- Why: workers are replaced one by one while the schema is upgraded once. Raised by the change that breaks older
--   programs (docs/architecture.md, Upgrades), and by nothing else.
create or replace function llmqueue.oldest_program()
returns integer language sql immutable as $$ select 1 $$;
comment on function llmqueue.oldest_program is
    'Names the oldest release whose programs still work with this schema.';
