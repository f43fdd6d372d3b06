-- What it does: ends the cooldown of a model, makes the tasks that it refused due now, and notifies waiting workers.
-- Returns: whether the model was in cooldown.
-- Locks: the model's row of model_state, then task rows SKIP LOCKED.
-- Why: for a probe that was answered, and for people. The refused tasks were delayed until after the cooldown, which
--   ended early. They are looked for among the last 5,000 attempts, 1,000 at the most; the others become due at their
--   time. A trigger of the owner that raises must not keep the model in cooldown. The learned ceilings stay: they rise
--   with time.
create or replace function llmqueue.end_cooldown(p_model text)
returns boolean language plpgsql volatile
security definer set search_path = pg_catalog, pg_temp
set jit = off set enable_seqscan = off set enable_hashjoin = off set enable_mergejoin = off
set enable_bitmapscan = off as $$
declare
    v_now constant timestamptz := llmqueue_internal.clock();
    v_id llmqueue.task_id;
begin
    perform set_config('search_path', llmqueue_internal.owners_path(), true);   -- until this function ends
    update llmqueue.model_state s
       set cooldown_started_at = null, cooldown_until = null, cooldown_reason = null, cooldowns = 0, probe_fence = null,
           cooldown_ended_at = v_now
     where s.model = p_model and s.cooldown_until is not null;
    if not found then
        return false;
    end if;
    foreach v_id in array array(
        select last.task_id
          from (select a.task_id, a.model, a.outcome from llmqueue.attempt a order by a.fence desc limit 5000) last
         where last.model = p_model and last.outcome = 'refused' limit 1000)
    loop
        perform from llmqueue.task t
          where t.id = v_id and t.is_delayed and t.due_at > v_now for no key update of t skip locked;
        continue when not found;
        begin
            update llmqueue.task t set run_at = v_now where t.id = v_id and t.is_delayed;
        exception when others then
            if not llmqueue_internal.is_row_fault(sqlstate, true) then
                raise;
            end if;
        end;
    end loop;
    perform pg_notify('llmqueue', 'config');
    return true;
end
$$;
comment on function llmqueue.end_cooldown is
    'Ends the cooldown of a model and notifies waiting workers; returns whether the model was in one.';
