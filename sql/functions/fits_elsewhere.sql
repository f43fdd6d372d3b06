-- What it does: says whether a task of a pool that is too large for one model could go to another of its models.
-- Returns: true if another model of the lane, paused or not, has no limit on tokens, or one that the charge is within.
-- Locks: none.
-- Why: only a task that none can take is a dead letter.
create or replace function llmqueue.fits_elsewhere(p_lane text, p_model text, p_tokens bigint)
returns boolean language plpgsql stable as $$
begin
    return p_lane <> p_model and exists (
        select from llmqueue.model_config c
         where c.model <> p_model
           and coalesce(least(nullif(c.tpm, 0), nullif(c.tpd, 0)) >= p_tokens, true)   -- 0 pauses
           and case when p_lane = '' then c.weight > 0
                    else exists (select from llmqueue.pool_member m where m.pool = p_lane and m.model = c.model) end);
end
$$;
