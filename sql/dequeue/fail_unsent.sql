-- What it does: ends waiting tasks that must not be started: past their deadline_at, or too large for their model.
-- Returns: nothing.
-- Locks: the rows, which the caller holds.
-- Why: an answer after the deadline is of no use, and a charge above the limit would never be granted: such a task
--   neither costs a call nor holds up other tasks. Pinned by itself, since maintenance calls it too.
create or replace function llmqueue_internal.fail_unsent(p_ids llmqueue.task_id[], p_error text, p_now timestamptz)
returns void language plpgsql volatile
set jit = off set plan_cache_mode = force_generic_plan set enable_seqscan = off set enable_hashjoin = off
set enable_mergejoin = off as $$
declare
    v_id llmqueue.task_id;
    v_is_waiting boolean;
begin
    foreach v_id in array p_ids loop
        begin
            update llmqueue.task t
               set status = llmqueue_internal.status_word('failed'), finished_at = p_now, error = p_error
             where t.id = v_id
            returning t.is_ready or t.is_delayed into v_is_waiting;
            if v_is_waiting is distinct from false then
                perform llmqueue_internal.quarantine(v_id, 'fail_unsent',
                    'the UPDATE had no effect: a trigger swallowed it or put the status back');
            end if;
        exception when others then
            if not llmqueue_internal.is_row_fault(sqlstate, true) then
                raise;
            end if;
            perform llmqueue_internal.quarantine(v_id, 'fail_unsent', sqlerrm);
        end;
    end loop;
end
$$;
