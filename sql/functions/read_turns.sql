-- What it does: reads the turns that a worker brings along from its last claim.
-- Returns: one row: users ('rank lane' -> user), served (lane -> model -> number), seen (the highest fence that the worker was
--   given); empty where they are not like that.
-- Locks: none.
-- Why: they come from outside, perhaps from another release: nonsense must not stop a claim.
create or replace function llmqueue.read_turns(p_turns jsonb, out users jsonb, out served jsonb, out seen bigint)
language plpgsql immutable as $$
begin
    users := p_turns -> 'users';
    if (jsonb_typeof(users) = 'object' and not jsonb_path_exists(users, 'strict $.* ? (@.type() != "string")', '{}', true)) is not true then
        users := '{}'::jsonb;
    end if;
    served := p_turns -> 'served';
    if (jsonb_typeof(served) = 'object' and not jsonb_path_exists(served, 'strict $.* ? (@.type() != "object")', '{}', true)
        and not jsonb_path_exists(served, '$.*.* ? (@.type() != "number" || @ > 1000000000000000 || @ < -1000000000000000)')) is not true then
        served := '{}'::jsonb;
    end if;
    seen := case when jsonb_path_exists(p_turns, '$.seen ? (@.type() == "number" && @ >= 0 && @ < 1000000000000000)')
                 then (p_turns ->> 'seen')::numeric::bigint end;
end
$$;
