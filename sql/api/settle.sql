-- What it does: writes the ends of attempts of one worker, of all kinds, in one call.
--   p_items: [{verb, fence, task_id, answer?, delay_s?, counts?, error_class?, error?, sent_after_s?, latency_s?,
--   input_tokens?, output_tokens?, is_unsent?}]; verb: complete | retry | bury | release.
-- Returns: the outcome per fence: completed, retried, refused, buried, released, late (kept in the attempt log only:
--   a newer attempt runs or the task has ended), quarantined, unknown, or busy: another transaction holds the row,
--   nothing was done, send the item again.
-- Locks: rows of model_state in the order of the models' names, task rows SKIP LOCKED, then attempt rows. It never
--   waits for a task row.
-- Why: one round trip and one commit per flush. Each verb is tried as one batch in a savepoint. If the UPDATE of a row
--   raises, the items of that verb are tried one by one, and a task whose row cannot be written is quarantined; its
--   answer stays in the attempt log (I12). One by one, too, where the owner's triggers may read the other rows.
--   promote() and mark_each_running() have the same two steps in their own words: sharing them would take dynamic SQL,
--   and each answers a failed row differently. The planner settings hold for all functions that this calls.
create or replace function llmqueue.settle(p_worker uuid, p_items jsonb)
returns table (fence bigint, outcome text) language plpgsql volatile
security definer set search_path = pg_catalog, pg_temp
set jit = off set plan_cache_mode = force_generic_plan
set enable_seqscan = off set enable_hashjoin = off set enable_mergejoin = off set enable_bitmapscan = off as $$
declare
    v_now constant timestamptz := llmqueue_internal.clock();
    v_triggers record;
    v_group record;
    v_is_batch boolean;
    v_part jsonb;        -- items of a group: all of them, or one
    v_failures jsonb;
    v_failure record;
    v_has_succeeded boolean;
    v_has_refusals constant boolean := jsonb_path_exists(p_items, '$[*].refusal ? (@ != null)');
    v_fences bigint[];   -- of the items, in their order
    v_ids llmqueue.task_id[];
    v_verbs text[];
    v_free llmqueue.task_id[];   -- tasks that this call has locked
    v_busy bigint[] := '{}'::bigint[];
    v_running bigint[];   -- fences under which tasks still run after the end was written
    v_is_plain boolean;   -- one verb, and no row is busy: the items need not be grouped
    v_written integer;    -- answers that were written to a task
    v_unknown bigint;     -- the highest fence of an answer whose attempt this server does not know
begin
    perform set_config('search_path', llmqueue_internal.owners_path(), true);   -- until this function ends
    if current_setting('synchronous_commit') in ('off', 'local') then
        perform set_config('synchronous_commit', 'on', true);
    end if;
    set constraints all immediate;
    v_triggers := llmqueue_internal.update_triggers();   -- under the owner's path, as in a claim: else planned anew
    select coalesce(array_agg(i.fence), '{}'), coalesce(array_agg(i.task_id), '{}'), coalesce(array_agg(i.verb), '{}')
      into v_fences, v_ids, v_verbs
      from jsonb_to_recordset(p_items) as i(fence bigint, task_id llmqueue.task_id, verb text);
    -- a lookup per fence: a join, and on 16 an array too, may be planned as a read of the whole log
    v_unknown := (select max(x.fence) from unnest(v_fences, v_verbs) x(fence, verb)
                   where x.verb = 'complete'
                     and (select true from llmqueue.attempt a where a.fence = x.fence) is null);
    if v_unknown is not null then
        perform llmqueue_internal.check_epoch(v_unknown);   -- first: it may wait for the lock of every model
    end if;
    -- before any task, and in one order: starting and ending cooldowns must not deadlock with another settle
    perform from llmqueue.model_state s
      where s.cooldown_until is not null or v_has_refusals order by s.model for update;
    if v_unknown is not null then
        perform llmqueue_internal.keep_lost(p_worker, p_items, v_now);
    end if;
    v_free := array(select t.id::llmqueue.task_id
                      from llmqueue.task t where t.id = any (v_ids) for no key update of t skip locked);
    if cardinality(v_free) < cardinality(v_ids) then   -- busy, or the row has been deleted
        v_busy := array(select x.fence from unnest(v_fences, v_ids) x(fence, id)
                         where x.id <> all (v_free) and (select true from llmqueue.task t where t.id = x.id));
    end if;
    v_is_plain := cardinality(v_busy) = 0 and cardinality(v_verbs) > 0 and coalesce(v_verbs[1] = all (v_verbs), false);
    <<groups>>
    for v_group in
        select v_verbs[1] as verb, p_items as items where v_is_plain
        union all
        select item ->> 'verb', jsonb_agg(item)
          from jsonb_array_elements(p_items) item
         where not v_is_plain and (item ->> 'fence')::bigint <> all (v_busy)
         group by 1
    loop
        foreach v_is_batch in array array[true, false] loop
            continue when v_is_batch and v_triggers.has_row_after and jsonb_array_length(v_group.items) > 1;
            v_failures := '[]'::jsonb;
            v_has_succeeded := false;
            for v_part in
                select v_group.items where v_is_batch
                union all
                select jsonb_build_array(item) from jsonb_array_elements(v_group.items) item where not v_is_batch
            loop
                begin
                    case v_group.verb   -- any other raises
                        when 'complete' then v_written := llmqueue_internal.complete(p_worker, v_part, v_now);
                        when 'retry' then perform llmqueue_internal.retry(p_worker, v_part, v_now);
                        when 'bury' then perform llmqueue_internal.bury(p_worker, v_part, v_now);
                        when 'release' then perform llmqueue_internal.release(p_worker, v_part, v_now);
                    end case;
                    v_has_succeeded := true;
                exception when others then
                    if not llmqueue_internal.is_row_fault(sqlstate, true) then
                        raise;
                    end if;
                    v_failures := v_failures
                        || jsonb_build_object('item', v_part -> 0, 'state', sqlstate, 'message', sqlerrm);
                end;
            end loop;
            continue groups when v_failures = '[]'::jsonb;
        end loop;
        for v_failure in select f.* from jsonb_to_recordset(v_failures) f(item jsonb, state text, message text) loop
            if not llmqueue_internal.is_row_fault(v_failure.state, v_has_succeeded) then
                raise exception '%', v_failure.message using errcode = v_failure.state;
            end if;
            perform llmqueue_internal.quarantine_attempt(
                p_worker, v_failure.item, v_failure.state, v_failure.message, v_now);
        end loop;
    end loop;
    if v_is_plain and v_written = cardinality(v_fences) and not v_triggers.has_any then
        return query select given.fence, 'completed' from unnest(v_fences) given(fence);
        return;
    end if;
    -- a trigger of the owner may swallow the UPDATE: the task would be running for ever, without a worker
    v_running := array(select t.fence from llmqueue.task t
                        where t.id = any (v_ids) and coalesce(t.is_running, false)
                          and t.fence = any (v_fences) and t.fence <> all (v_busy));
    for v_part in
        select p_items -> (x.no - 1)::integer
          from unnest(v_fences, v_ids) with ordinality x(fence, id, no)
         where x.fence = any (v_running)
           and (select t.is_running and t.fence = x.fence from llmqueue.task t where t.id = x.id)
           and (select a.outcome <> 'quarantined' from llmqueue.attempt a
                 where a.fence = x.fence and a.worker = p_worker)
    loop
        perform llmqueue_internal.quarantine_attempt(
            p_worker, v_part, '', 'the UPDATE had no effect: a trigger swallowed it', v_now);
    end loop;
    return query
        select given.fence,
               case when given.fence = any (v_busy) then 'busy'
                    else coalesce((select a.outcome from llmqueue.attempt a
                                    where a.fence = given.fence and a.worker = p_worker), 'unknown') end
          from unnest(v_fences) given(fence);
end
$$;
comment on function llmqueue.settle is
    'Writes the ends of attempts of one worker and says per attempt what came of it. For workers.';
