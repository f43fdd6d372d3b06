-- What it does: makes tasks that a model had refused due now, because it answers again.
-- Returns: how many.
-- Locks: their rows, SKIP LOCKED.
-- Why: they were put behind a reopening that came earlier. Looked for among the last 5,000 attempts, 1,000 at the most; the rest
--   comes at its time. An owner's trigger that raises must not keep the model closed.
create or replace function llmqueue_internal.free_refused(p_model text)
returns integer language plpgsql volatile
set jit = off set enable_seqscan = off set enable_hashjoin = off set enable_mergejoin = off set enable_bitmapscan = off as $$
declare
    v_now timestamptz := llmqueue_internal.clock();
    v_ids llmqueue.task_id[];
    v_id llmqueue.task_id;
    v_freed integer := 0;
begin
    v_ids := array(select last.task_id from (select a.task_id, a.model, a.outcome from llmqueue.attempt a order by a.fence desc limit 5000) last
                    where last.model = p_model and last.outcome = 'refused' limit 1000);
    foreach v_id in array v_ids loop
        perform from llmqueue.task t where t.id = v_id and t.is_delayed and t.due_at > v_now for no key update of t skip locked;
        continue when not found;
        begin
            update llmqueue.task t set run_at = v_now where t.id = v_id and t.is_delayed;
            v_freed := v_freed + 1;
        exception when others then
            if not llmqueue_internal.is_row_fault(sqlstate, true) then
                raise;
            end if;
        end;
    end loop;
    return v_freed;
end
$$;
