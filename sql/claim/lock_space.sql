-- What it does: names the space of our advisory locks, so that they do not meet the owner's own.
-- Returns: the first key of pg_advisory_xact_lock(int, int); the second is hashtext(model).
-- Locks: none.
-- Why: one place for the number; two models whose hashes collide share a lock, which is slower but right.
create or replace function llmqueue_internal.lock_space() returns integer language sql immutable parallel safe
    as 'select 1819045233';
