-- What it does: says in words why a charge can never be granted.
-- Returns: the error of the dead letter, with the numbers.
-- Locks: none.
-- Why: who reads it must see which limit, and what it would have to be.
create or replace function llmqueue_internal.oversize_error(p_budget llmqueue_internal.budget, p_charge llmqueue_internal.charged_task)
returns text language sql immutable as $$
    select 'exceeds_tpm: charged ' || p_charge.tokens || ' tokens ('
        || case (p_budget.configured).token_mode
               when 'input' then p_charge.input_charge || ' of input'
               when 'split' then p_charge.input_charge || ' of input, and ' || p_charge.output_tokens || ' of output'
               when 'max' then 'the larger of input ' || p_charge.input_charge || ' and output ' || p_charge.output_charge
               else 'input ' || p_charge.input_charge || ' + output ' || p_charge.output_charge end
        || '), and ' || p_budget.model || ' allows '
        || case when p_charge.output_tokens > (p_budget.configured).output_tpm then 'output_tpm ' || (p_budget.configured).output_tpm
                when p_charge.tokens > (p_budget.configured).tpm then 'tpm ' || (p_budget.configured).tpm
                else 'tpd ' || (p_budget.configured).tpd end
$$;
