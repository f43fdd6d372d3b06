-- What it does: says whether a task of a pool that is too large for one model could go to another of its models.
-- Returns: true if an enabled model of the lane has no limit on tokens, or one that the charge is within.
-- Locks: none.
-- Why: only a task that none can take is a dead letter.
create or replace function llmqueue.fits_elsewhere(p_lane text, p_model text, p_tokens bigint)
returns boolean language plpgsql stable as $$
begin
    return p_lane <> p_model and exists (
        select from llmqueue.model_config c
         where c.model <> p_model and c.enabled and c.rpm > 0
           and coalesce(least(c.tpm, c.tpd) >= p_tokens, true)
           and case when p_lane = '' then c.weight > 0
                    else exists (select from llmqueue.pool_member m where m.pool = p_lane and m.model = c.model) end);
end
$$;
