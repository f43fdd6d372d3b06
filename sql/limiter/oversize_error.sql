-- What it does: says in words that a charge is above a limit of a model, so that it could never be granted.
-- Returns: the error of the dead letter, with the numbers; null if the charge is within the limits.
-- Locks: none.
-- Why: the limits are those on tokens of a window, of the day, and with split on tokens of the output. Whoever reads
--   the error must see which limit it was, and what it would have to be.
create or replace function llmqueue_internal.oversize_error(
    p_config llmqueue.model_config, p_charge llmqueue_internal.charged_task)
returns text language plpgsql immutable as $$
declare
    v_limit constant text :=
        case when p_charge.output_tokens > p_config.output_tpm then 'output_tpm ' || p_config.output_tpm
             when p_charge.tokens > p_config.tpm then 'tpm ' || p_config.tpm
             when p_charge.tokens + p_charge.output_tokens > p_config.tpd then 'tpd ' || p_config.tpd end;
begin
    if v_limit is null then
        return null;
    end if;
    return 'exceeds_tpm: charged ' || p_charge.tokens || ' tokens ('
        || case p_config.token_mode
               when 'input' then p_charge.input_charge || ' of input'
               when 'split' then p_charge.input_charge || ' of input, and ' || p_charge.output_tokens || ' of output'
               when 'max' then 'the larger of input ' || p_charge.input_charge || ' and output '
                   || p_charge.output_charge
               else 'input ' || p_charge.input_charge || ' + output ' || p_charge.output_charge end
        || '), and ' || p_config.model || ' allows ' || v_limit;
end
$$;
