-- What it does: turns what a call was charged into what it used, once the backend has said so.
-- Returns: nothing.
-- Locks: the row of the grant, FOR KEY SHARE. Not the model's lock: see refund().
-- Why: once per attempt, in the cell that was charged and down to 0 at most, or other calls would be granted that must
--   not be (I5). What a provider counts by a rule of its own stays at its rule; only the estimate of the input is
--   corrected. A cell that no window reaches any more is corrected for the day's limit. Called by complete() alone,
--   which ends an attempt once.
create or replace function llmqueue_internal.reconcile(p_attempt llmqueue.attempt, p_input integer, p_output integer)
returns void language plpgsql volatile as $$
declare
    v_tokens bigint;
    v_output bigint := coalesce(p_attempt.output_tokens_charged, 0);
begin
    if p_attempt.tokens is null or coalesce(p_input, 0) <= 0 or p_attempt.tokens_final is not null
       or (p_output is null and p_attempt.token_mode in ('actual', 'split')) then
        return;
    end if;
    v_tokens := (case p_attempt.token_mode
                    when 'sum' then p_input::bigint + p_attempt.output_charge
                    when 'max' then greatest(p_input::bigint, p_attempt.output_charge)
                    when 'actual' then p_input::bigint + p_output
                    else p_input end)::bigint;
    if p_attempt.token_mode = 'split' then
        v_output := greatest(0, p_output)::bigint;
    end if;
    update llmqueue.attempt a set tokens_final = v_tokens, output_tokens_final = v_output
     where a.fence = p_attempt.fence;
    insert into llmqueue.ledger_cell (model, cell, calls, tokens, output_tokens)
    select p_attempt.model, p_attempt.cell, 0, x.tokens, x.output_tokens
      from (select greatest(v_tokens - p_attempt.tokens - coalesce(p_attempt.top_up_tokens, 0), -p_attempt.tokens)
                   as tokens,
                   v_output - coalesce(p_attempt.output_tokens_charged, 0) as output_tokens) x
     where (x.tokens <> 0 or x.output_tokens <> 0)
       and exists (select from llmqueue.ledger_grant g
                    where g.model = p_attempt.model and g.cell = p_attempt.cell and g.granted_at = p_attempt.granted_at
                        for key share);
end
$$;
