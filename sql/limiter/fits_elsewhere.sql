-- What it does: says whether a task of a pool that is too large for one model could go to another of its models.
-- Returns: true if another model of the lane, paused or not, has limits that its own charge is within.
-- Locks: none.
-- Why: only a task that no model can take is a dead letter. Each model counts by its own token_mode.
create or replace function llmqueue_internal.fits_elsewhere(p_picked llmqueue_internal.locked_task, p_model text)
returns boolean language plpgsql stable as $$
declare
    v_config llmqueue.model_config;
    v_budget llmqueue_internal.budget;
begin
    for v_config in
        select c.* from llmqueue.model_config c
         where c.model <> p_model
           and (c.model = p_picked.lane or (p_picked.lane = '' and c.weight > 0)
                or exists (select from llmqueue.pool_member m where m.pool = p_picked.lane and m.model = c.model))
    loop
        -- a limit of 0 pauses, for now
        v_config.tpm := nullif(v_config.tpm, 0);
        v_config.tpd := nullif(v_config.tpd, 0);
        v_config.output_tpm := nullif(v_config.output_tpm, 0);
        v_budget.configured := v_config;
        select * into v_budget.bytes_ratio, v_budget.input_overhead, v_budget.output_expected
          from llmqueue_internal.expected_tokens(v_config);
        if llmqueue_internal.oversize_error(
               v_config, llmqueue_internal.estimate_charge(v_budget, p_picked.bytes, p_picked.max_output, null)
           ) is null then
            return true;
        end if;
    end loop;
    return false;
end
$$;
