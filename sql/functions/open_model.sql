-- What it does: opens a model that was closed after refusals, and rings the bell; for a probe that ended well, and for people.
-- Returns: whether it was closed.
-- Locks: the model's row of model_state.
-- Why: workers that wait for the model look again at once. The learned ceilings stay: they rise by themselves.
create or replace function llmqueue.open_model(p_model text, p_now timestamptz default null)
returns boolean language plpgsql volatile as $$
declare
    v_is_open boolean;
begin
    update llmqueue.model_state s
       set closed_at = null, closed_until = null, closed_because = null, closings = 0, probe_fence = null,
           reopened_at = coalesce(p_now, clock_timestamp())
     where s.model = p_model and s.closed_until is not null;
    v_is_open := found;
    if v_is_open then
        perform llmqueue.free_refused(p_model, p_now);
        perform pg_notify('llmqueue', 'config');
    end if;
    return v_is_open;
end
$$;
