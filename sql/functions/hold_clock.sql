-- What it does: notices a clock that has stepped back by more than a second and starts the model's ledger full.
-- Returns: nothing.
-- Locks: none; the caller holds the model's advisory lock.
-- Why: only for a claim of the release before, which may be under way while an upgrade replaces what it calls.
create or replace function llmqueue.hold_clock(p_model text, p_now timestamptz)
returns void language plpgsql volatile as $$
begin
    if p_now + interval '1 second' < (select g.granted_at from llmqueue.ledger_grant g where g.model = p_model
                                       order by g.cell desc, g.grant_no desc limit 1) then
        perform llmqueue.fill_ledger(p_model, p_now);
    end if;
end
$$;
