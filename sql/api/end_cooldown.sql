-- What it does: opens a model that was closed after refusals, and rings the bell; for a probe that ended well, and for people.
-- Returns: whether it was closed.
-- Locks: the model's row of model_state.
-- Why: workers that wait for the model look again at once. The learned ceilings stay: they rise by themselves.
create or replace function llmqueue.end_cooldown(p_model text)
returns boolean language plpgsql volatile
security definer set search_path = pg_catalog, pg_temp as $$
declare
    v_is_open boolean;
begin
    perform set_config('search_path', llmqueue_internal.owners_path(), true);   -- until this function ends
    update llmqueue.model_state s
       set cooldown_started_at = null, cooldown_until = null, cooldown_reason = null, cooldowns = 0, probe_fence = null,
           cooldown_ended_at = llmqueue_internal.clock()
     where s.model = p_model and s.cooldown_until is not null;
    v_is_open := found;
    if v_is_open then
        perform llmqueue_internal.free_refused(p_model);
        perform pg_notify('llmqueue', 'config');
    end if;
    return v_is_open;
end
$$;
comment on function llmqueue.end_cooldown is
    'Ends the cooldown of a model; returns whether it was in one.';
