-- What it does: tells the time that all of llmqueue goes by.
-- Returns: the wall clock of the database server.
-- Locks: none.
-- Why: one place for the clock, so that tests and `llmqueue simulate` own it: they replace this function in a database
--   of theirs. No role of production may (tests/sql/test_roles.py). One expression without a SET clause: the planner
--   puts it in place of the call, so it costs nothing.
create or replace function llmqueue_internal.clock()
returns timestamptz language sql volatile as $$ select clock_timestamp() $$;
