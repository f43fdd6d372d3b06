-- What it does: reads from a task's params how many output tokens it allows.
-- Returns: the first of max_completion_tokens, max_output_tokens, max_tokens that is there; null if that is no number.
-- Locks: none.
-- Why: providers count the first that they know. Read as text: json and jsonb alike, whatever else is in there.
create or replace function llmqueue_internal.max_output_of(p_params text)
returns integer language plpgsql immutable as $$
declare
    v_text text;
begin
    if p_params is null or p_params !~ 'max_' then
        return null;
    end if;
    v_text := coalesce(p_params::json ->> 'max_completion_tokens', p_params::json ->> 'max_output_tokens',
                       p_params::json ->> 'max_tokens');
    return case when v_text ~ '^[0-9]{1,9}([.]0+)?$' then trunc(v_text::numeric)::integer end;
exception when others then
    return null;   -- params may be any JSON
end
$$;
