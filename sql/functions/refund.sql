-- What it does: takes the charges of attempts that were never sent back, each in the cell that was charged.
-- Returns: nothing.
-- Locks: the rows of the grants, FOR KEY SHARE. Not the model's lock: a refund is an insert, and a grant that does not
--   see it yet is only too careful.
-- Why: only release, retry and bury call it, in the statement's transaction that ends the attempt, so each is refunded
--   once (I4). A charge that fill_ledger() has dropped with a clock that stepped back is not refunded: the refund alone
--   would be leave to call. Its row is locked, so that this cannot happen between the look and the COMMIT.
create or replace function llmqueue.refund(p_fences bigint[])
returns void language plpgsql volatile
set jit = off set enable_seqscan = off set enable_hashjoin = off set enable_mergejoin = off as $$
begin
    insert into llmqueue.ledger_cell (model, cell, calls)
    select unsent.model, unsent.cell, -count(*)
      from unnest(p_fences) ended(fence)
     cross join lateral (select a.model, a.cell, a.granted_at from llmqueue.attempt a where a.fence = ended.fence limit 1) unsent
     where exists (select from llmqueue.ledger_grant g
                    where g.model = unsent.model and g.cell = unsent.cell and g.granted_at = unsent.granted_at for key share)
     group by unsent.model, unsent.cell;
end
$$;
