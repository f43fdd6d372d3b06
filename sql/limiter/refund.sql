-- What it does: takes back the charges of attempts that were never sent, each in the cell that was charged.
-- Returns: nothing.
-- Locks: the rows of the grants, FOR KEY SHARE. Not the model's lock: a refund is an insert, and a grant that does not
--   see it yet is only too careful.
-- Why: only release, retry and bury call it, in the statement's transaction that ends the attempt, so each is refunded
--   once (I4). A charge that fill_ledger() has dropped with a clock that stepped back is not refunded: the refund alone
--   would allow calls. Its row is locked, so that this cannot happen between the look and the COMMIT.
create or replace function llmqueue_internal.refund(p_fences bigint[])
returns void language plpgsql volatile
set jit = off set plan_cache_mode = force_generic_plan set enable_seqscan = off set enable_hashjoin = off
set enable_mergejoin = off as $$
begin
    insert into llmqueue.ledger_cell (model, cell, calls, hot_calls, tokens, output_tokens)
    select unsent.model, unsent.cell, -count(*), -count(*) filter (where unsent.is_hot),
           -coalesce(sum(unsent.tokens), 0),
           -coalesce(sum(unsent.output_tokens_charged), 0)
      from unnest(p_fences) ended(fence)
     cross join lateral (select a.model, a.cell, a.granted_at, a.is_hot, a.tokens, a.output_tokens_charged
                           from llmqueue.attempt a where a.fence = ended.fence limit 1) unsent
     where exists (select from llmqueue.ledger_grant g
                    where g.model = unsent.model and g.cell = unsent.cell and g.granted_at = unsent.granted_at
                        for key share)
     group by unsent.model, unsent.cell;
    insert into llmqueue.ledger_cell (model, cell, calls, tokens)
    select unsent.model, unsent.top_up_cell, 0, -unsent.top_up_tokens
      from unnest(p_fences) ended(fence)
     cross join lateral (select a.model, a.top_up_cell, a.top_up_tokens
                           from llmqueue.attempt a where a.fence = ended.fence and a.top_up_tokens <> 0 limit 1) unsent
     where exists (select from llmqueue.ledger_grant g
                    where g.model = unsent.model and g.cell = unsent.top_up_cell and g.tokens >= unsent.top_up_tokens
                        for key share);
end
$$;
