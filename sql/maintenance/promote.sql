-- What it does: makes up to p_limit delayed tasks ready that are due.
-- Returns: how many tasks are ready now.
-- Locks: the task rows, FOR NO KEY UPDATE SKIP LOCKED.
-- Why: tasks that are not due stay out of the ready index. Any worker promotes, there is no leader. A task whose UPDATE
--   raises or has no effect is quarantined, else 500 of them would stand before all others (I12). The rows are written
--   as one batch first and one by one only if that fails; why this is not shared with settle(), see there. A bitmap
--   scan would read and sort all tasks that are due.
create or replace function llmqueue_internal.promote(p_limit integer)
returns integer language plpgsql volatile set enable_bitmapscan = off set jit = off as $$
declare
    v_now constant timestamptz := llmqueue_internal.clock();
    v_ids llmqueue.task_id[];
    v_id llmqueue.task_id;
    v_is_ready boolean;
    v_promoted integer := 0;
begin
    select array_agg(due.id)::llmqueue.task_id[] into v_ids
      from (select t.id from llmqueue.task t
             where t.is_delayed and t.due_at <= v_now
               and (select true from llmqueue.quarantine s where s.task_id = t.id) is null
             order by t.due_at limit p_limit for no key update of t skip locked) due;
    if v_ids is null then
        return 0;
    end if;
    begin
        update llmqueue.task t set status = llmqueue_internal.status_word('unsolved')
          from unnest(v_ids) picked(id) where t.id = picked.id;
        get diagnostics v_promoted = row_count;
        if v_promoted = cardinality(v_ids) then
            return v_promoted;
        end if;
    exception when others then
        if not llmqueue_internal.is_row_fault(sqlstate, true) then
            raise;
        end if;
    end;
    v_promoted := 0;
    foreach v_id in array v_ids loop
        begin
            update llmqueue.task t set status = llmqueue_internal.status_word('unsolved') where t.id = v_id
            returning t.is_ready into v_is_ready;
            if v_is_ready then
                v_promoted := v_promoted + 1;
            else
                perform llmqueue_internal.quarantine(
                    v_id, 'promote', 'the UPDATE had no effect: a trigger swallowed it');
            end if;
        exception when others then
            if not llmqueue_internal.is_row_fault(sqlstate, true) then
                raise;
            end if;
            perform llmqueue_internal.quarantine(v_id, 'promote', sqlerrm);
        end;
    end loop;
    return v_promoted;
end
$$;
