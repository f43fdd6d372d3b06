-- What it does: calls the function of a verb.
-- Returns: how many answers were written to a task; null for the other verbs.
-- Locks: see complete, retry, bury, release.
-- Why: static names; an unknown verb raises.
create or replace function llmqueue_internal.settle_verb(p_verb text, p_worker uuid, p_items jsonb, p_now timestamptz)
returns integer language plpgsql volatile as $$
begin
    case p_verb
        when 'complete' then return llmqueue_internal.complete(p_worker, p_items, p_now);
        when 'retry' then perform llmqueue_internal.retry(p_worker, p_items, p_now);
        when 'bury' then perform llmqueue_internal.bury(p_worker, p_items, p_now);
        when 'release' then perform llmqueue_internal.release(p_worker, p_items, p_now);
    end case;
    return null;
end
$$;
