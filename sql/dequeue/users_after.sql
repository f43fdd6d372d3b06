-- What it does: notes which user of each lane was served last at a priority.
-- Returns: p_users with 'rank lane' -> user for the lanes that were looked at: the last served, else the last looked at.
-- Locks: none.
-- Why: users who have nothing due, or whose rows somebody holds, are not looked at first again and again. It travels with the
--   worker's claims, so it is forgotten when it has grown large.
create or replace function llmqueue_internal.users_after(p_users jsonb, p_rank bigint, p_looked jsonb, p_served jsonb)
returns jsonb language plpgsql immutable as $$
begin
    return case when (select count(*) from jsonb_object_keys(p_users)) < 500 then p_users else '{}'::jsonb end
        || coalesce((select jsonb_object_agg(p_rank || ' ' || u.key, u.value)
                       from jsonb_each(coalesce(p_looked, '{}'::jsonb) || p_served) u), '{}'::jsonb);
end
$$;
