-- What it does: marks locked tasks as running; when the UPDATE of one raises or has no effect, marks the others and
--   quarantines that one.
-- Returns: the tasks that are running now.
-- Locks: none beyond the rows that the caller has locked.
-- Why: an owner's trigger that raises on one row must not stop a lane (I12). The batch is tried as a whole first, then
--   row by row, each in a savepoint of its own; so are the rows of a table with triggers that may look at the other
--   rows. An error that is not the row's fault (a lock timeout, a cancelled statement, a deadlock, a full disk) is
--   raised to the caller. A row that such a trigger has ended or postponed is not ready, and nothing is wrong with it.
create or replace function llmqueue_internal.mark_each_running(
    p_worker uuid, p_budget llmqueue_internal.budget, p_candidates llmqueue_internal.charged_task[], p_now timestamptz)
returns llmqueue_internal.running_task[] language plpgsql volatile as $$
declare
    v_rows llmqueue_internal.running_task[] := array[]::llmqueue_internal.running_task[];
    v_one llmqueue_internal.running_task[];
    v_candidate llmqueue_internal.charged_task;
    v_id llmqueue.task_id;
    v_swallowed constant text := 'the UPDATE had no effect: a trigger swallowed it or put the status back';
    v_failures jsonb := '[]'::jsonb;
    v_failure record;
begin
    if cardinality(p_candidates) = 0 then
        return v_rows;
    end if;
    if cardinality(p_candidates) = 1 or not (llmqueue_internal.update_triggers()).has_row_after then
        begin
            v_rows := llmqueue_internal.mark_running(p_worker, p_budget, p_candidates, p_now);
            if cardinality(v_rows) < cardinality(p_candidates) then
                foreach v_candidate in array p_candidates loop
                    v_id := v_candidate.task_id;
                    perform llmqueue_internal.quarantine(v_id, 'claim', v_swallowed)
                      where not exists (select from unnest(v_rows) taken where taken.task_id = v_id)
                        and (select t.is_ready and t.due_at <= p_now from llmqueue.task t where t.id = v_id);
                end loop;
            end if;
            return v_rows;
        exception when others then
            if not llmqueue_internal.is_row_fault(sqlstate, true) then
                raise;
            end if;
        end;
    end if;
    foreach v_candidate in array p_candidates loop
        v_id := v_candidate.task_id;
        begin
            v_one := llmqueue_internal.mark_running(p_worker, p_budget, array[v_candidate], p_now);
            v_rows := v_rows || v_one;
            perform llmqueue_internal.quarantine(v_id, 'claim', v_swallowed)
              where cardinality(v_one) = 0 and (select t.is_ready and t.due_at <= p_now from llmqueue.task t
                                                where t.id = v_id);
        exception when others then
            if not llmqueue_internal.is_row_fault(sqlstate, true) then
                raise;
            end if;
            v_failures := v_failures || jsonb_build_object('id', v_id::text, 'state', sqlstate, 'message', sqlerrm);
        end;
    end loop;
    for v_failure in select f.id, f.state, f.message
        from jsonb_to_recordset(v_failures) f(id text, state text, message text) loop
        if not llmqueue_internal.is_row_fault(v_failure.state, cardinality(v_rows) > 0
                                              or cardinality(p_candidates) = 1) then
            raise exception '%', v_failure.message using errcode = v_failure.state;
        end if;
        perform llmqueue_internal.quarantine(v_failure.id::llmqueue.task_id, 'claim', v_failure.message);
    end loop;
    return v_rows;
end
$$;
