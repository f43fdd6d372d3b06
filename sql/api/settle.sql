-- What it does: writes the ends of attempts of one worker, of all kinds, in one call.
--   p_items: [{verb, fence, task_id, answer?, delay_s?, counts?, error_class?, error?, sent_after_s?, latency_s?,
--   input_tokens?, output_tokens?, is_unsent?}]; verb: complete | retry | bury | release.
-- Returns: per fence what became of it: completed, retried, refused, buried, released, late (kept in the attempt log
--   only, since a newer attempt runs or the task has ended), quarantined, unknown, or busy: somebody else's transaction
--   holds the row now, nothing was done, send it again.
-- Locks: task rows SKIP LOCKED, then attempt rows. Never waits for a row.
-- Why: one round trip and one commit per flush. Each kind is tried as a whole in a savepoint; if the UPDATE of a row
--   raises, its rows are tried one by one and that one is set aside, its answer kept in the attempt log (I12). One by one too
--   where triggers may look at the other rows.
create or replace function llmqueue.settle(p_worker uuid, p_items jsonb)
returns table (fence bigint, outcome text) language plpgsql volatile
security definer set search_path = pg_catalog, pg_temp set jit = off set plan_cache_mode = force_generic_plan set enable_seqscan = off set enable_hashjoin = off set enable_mergejoin = off as $$
declare
    v_now timestamptz := llmqueue_internal.clock();
    v_group record;
    v_item jsonb;
    v_failures jsonb;
    v_has_succeeded boolean;
    v_has_refusals boolean;
    v_failure record;
    v_fences bigint[];   -- of the items, in their order
    v_ids llmqueue.task_id[];
    v_verbs text[];
    v_free llmqueue.task_id[];   -- those that we could lock
    v_busy bigint[] := '{}'::bigint[];
    v_running bigint[];   -- fences that their tasks still have
    v_triggers record;
    v_is_plain boolean;   -- all of one kind, and none is busy: no need to part them
    v_written integer;   -- answers that reached their task
    v_unknown bigint;   -- the highest fence of an answer that this server knows nothing of
begin
    perform set_config('search_path', llmqueue_internal.owners_path(), true);   -- until this function ends
    if current_setting('synchronous_commit') in ('off', 'local') then
        perform set_config('synchronous_commit', 'on', true);
    end if;
    set constraints all immediate;
    v_triggers := llmqueue_internal.update_triggers();
    select coalesce(array_agg(i.fence), '{}'), coalesce(array_agg(i.task_id), '{}'), coalesce(array_agg(i.verb), '{}')
      into v_fences, v_ids, v_verbs from jsonb_to_recordset(p_items) as i(fence bigint, task_id llmqueue.task_id, verb text);
    -- one by one: a join, and on 16 an array too, may be planned to read the whole log
    v_unknown := (select max(x.fence) from unnest(v_fences, v_verbs) x(fence, verb)
                   where x.verb = 'complete'
                     and (select true from llmqueue.attempt a where a.fence = x.fence) is null);
    if v_unknown is not null then
        perform llmqueue_internal.check_epoch(v_unknown);   -- first: it may wait for every model's lock
    end if;
    -- before anything else, and in one order: closing and opening models must not deadlock with another settle
    v_has_refusals := jsonb_path_exists(p_items, '$[*].refusal ? (@ != null)');
    perform from llmqueue.model_state s where s.cooldown_until is not null or v_has_refusals order by s.model for update;
    if v_unknown is not null then
        perform llmqueue_internal.keep_lost(p_worker, p_items, v_now);
    end if;
    with free as materialized (
        select t.id from llmqueue.task t where t.id = any (v_ids) for no key update of t skip locked)
    select coalesce(array_agg(free.id::llmqueue.task_id), '{}') into v_free from free;
    if cardinality(v_free) < cardinality(v_ids) then   -- or the row has been deleted
        v_busy := array(select x.fence from unnest(v_fences, v_ids) x(fence, id)
                         where x.id <> all (v_free) and (select true from llmqueue.task t where t.id = x.id));
    end if;
    v_is_plain := cardinality(v_busy) = 0 and cardinality(v_verbs) > 0 and coalesce(v_verbs[1] = all (v_verbs), false);
    for v_group in
        select v_verbs[1] as verb, p_items as items where v_is_plain
        union all
        select item ->> 'verb', jsonb_agg(item)
          from jsonb_array_elements(p_items) item
         where not v_is_plain and (item ->> 'fence')::bigint <> all (v_busy)
         group by 1
    loop
        if jsonb_array_length(v_group.items) = 1 or not v_triggers.has_row_after then
            begin
                v_written := llmqueue_internal.settle_verb(v_group.verb, p_worker, v_group.items, v_now);
                continue;
            exception when others then
                if not llmqueue_internal.is_row_fault(sqlstate, true) then
                    raise;
                end if;
            end;
        end if;
        v_failures := '[]'::jsonb;
        v_has_succeeded := false;
        for v_item in select item from jsonb_array_elements(v_group.items) item loop
            begin
                perform llmqueue_internal.settle_verb(v_group.verb, p_worker, jsonb_build_array(v_item), v_now);
                v_has_succeeded := true;
            exception when others then
                if not llmqueue_internal.is_row_fault(sqlstate, true) then
                    raise;
                end if;
                v_failures := v_failures || jsonb_build_object('item', v_item, 'state', sqlstate, 'message', sqlerrm);
            end;
        end loop;
        for v_failure in
            select f.item, f.state, f.message from jsonb_to_recordset(v_failures) f(item jsonb, state text, message text)
        loop
            if not llmqueue_internal.is_row_fault(v_failure.state, v_has_succeeded) then
                raise exception '%', v_failure.message using errcode = v_failure.state;
            end if;
            perform llmqueue_internal.quarantine_attempt(p_worker, v_failure.item, v_failure.state, v_failure.message, v_now);
        end loop;
    end loop;
    if v_is_plain and v_written = cardinality(v_fences) and not v_triggers.has_any then   -- else a row may not be as it was written
        return query select given.fence, 'completed' from unnest(v_fences) given(fence);
        return;
    end if;
    -- an owner's trigger may swallow the UPDATE: such a row would be running for ever with nobody behind it
    v_running := array(select t.fence from llmqueue.task t
                        where t.id = any (v_ids) and coalesce(t.is_running, false) and t.fence = any (v_fences) and t.fence <> all (v_busy));
    for v_item in
        select p_items -> (x.no - 1)::integer
          from unnest(v_fences, v_ids) with ordinality x(fence, id, no)
         where x.fence = any (v_running)
           and (select t.is_running and t.fence = x.fence from llmqueue.task t where t.id = x.id)
           and (select a.outcome <> 'quarantined' from llmqueue.attempt a where a.fence = x.fence and a.worker = p_worker)
    loop
        perform llmqueue_internal.quarantine_attempt(p_worker, v_item, '', 'the UPDATE had no effect: a trigger swallowed it', v_now);
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
    'Writes the ends of attempts of one worker. For workers.';
