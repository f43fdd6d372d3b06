-- What it does: says why a model whose lanes have no task for it was given none.
-- Returns: 'unknown' without a row in model_config; null if only the model's share of a pool is used up and more tasks
--   wait there; else 'empty'.
-- Locks: none.
-- Why: after "empty" a worker asks again only at a wake-up or the next poll.
create or replace function llmqueue_internal.empty_reason(p_model text, p_shares jsonb)
returns text language plpgsql stable as $$
begin
    if not exists (select from llmqueue.model_config c where c.model = p_model) then
        return 'unknown';
    elsif jsonb_path_exists(coalesce(p_shares, '{}'),
                            '$.* ? (@.is_more == true && exists (@.models.keyvalue() ? (@.key == $model)))',
                            jsonb_build_object('model', p_model)) then
        return null;
    end if;
    return 'empty';
end
$$;
