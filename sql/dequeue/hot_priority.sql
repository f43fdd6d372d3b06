-- What it does: names the lowest priority of a hot task.
-- Returns: 100.
-- Locks: none.
-- Why: hot tasks have slots and grants of their own (decision 25). The planner puts the constant in place of the call.
create or replace function llmqueue_internal.hot_priority()
returns bigint language sql immutable parallel safe as $$ select 100::bigint $$;
