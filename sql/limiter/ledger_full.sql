-- What it does: names the calls of a cell that fill_ledger() wrote: more than any limit allows.
-- Returns: 1,000,000,000.
-- Locks: none.
-- Why: such a cell stands for no call, so views, the day's limits and prune_ledger() leave it out.
create or replace function llmqueue_internal.ledger_full()
returns integer language sql immutable parallel safe as $$ select 1000000000 $$;
