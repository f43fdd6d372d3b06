-- What it does: reads the claim state that a worker brings along from its last claim.
-- Returns: one row: users ('rank lane' -> user), served (lane -> model -> number), seen (the highest fence that the
--   worker was given), cursors (null: none are needed), look_at (when to look behind the cursors, in seconds since
--   1970); each empty where the worker's is not of that form.
-- Locks: none.
-- Why: it comes from outside, perhaps from another release: nonsense must not stop a claim.
create or replace function llmqueue_internal.read_claim_state(
    p_claim_state jsonb, out users jsonb, out served jsonb, out seen bigint,
    out cursors llmqueue_internal.resume_cursor[], out look_at double precision)
language plpgsql stable as $$
begin
    users := p_claim_state -> 'users';
    if (jsonb_typeof(users) = 'object'
        and not jsonb_path_exists(users, 'strict $.* ? (@.type() != "string")', '{}', true)) is not true then
        users := '{}'::jsonb;
    end if;
    served := p_claim_state -> 'served';
    if (jsonb_typeof(served) = 'object'
        and not jsonb_path_exists(served, 'strict $.* ? (@.type() != "object")', '{}', true)
        and not jsonb_path_exists(served,
            '$.*.* ? (@.type() != "number" || @ > 1000000000000000 || @ < -1000000000000000)')) is not true then
        served := '{}'::jsonb;
    end if;
    if jsonb_typeof(p_claim_state -> 'cursors') = 'array' then
        begin
            cursors := array(select m::llmqueue_internal.resume_cursor
                               from jsonb_populate_recordset(null::llmqueue_internal.resume_cursor,
                                                             p_claim_state -> 'cursors') m
                              where m.lane is not null and m.due_at is not null and m.task_id is not null
                                and (m.rank is null) = (m.user_key is null)
                              limit 1000);
            look_at := (p_claim_state ->> 'look_at')::double precision;
        exception when data_exception or not_null_violation then
            cursors := null;
        end;
    end if;
    seen := case when jsonb_path_exists(p_claim_state,
        'strict $.seen ? (@.type() == "number" && @ >= 0 && @ < 1000000000000000)', '{}', true)
                 then (p_claim_state ->> 'seen')::numeric::bigint end;
end
$$;
