-- What it does: grants calls and claims tasks for them, for several models in one call; a grant and its claim are one
--   transaction. Maintenance that is due (p_maintenance) runs first, so an idle worker needs one query a second.
-- Returns: a row per claimed task (task_id not null), and a row per model with the refusal: reason null (the claim took
--   all it wanted), 'rpm', 'pace', 'burst', 'tpm', 'day', 'cooldown', 'concurrency', 'empty', 'paused', 'contended' or
--   'unknown', and retry_in_s. waited_s is the time of the grant minus the start of the statement, clock_at the
--   database's clock at the grant. One row has claim_state, which the worker gives to its next claim; the epoch and the
--   highest fence are part of it.
-- Locks: none before check_epoch(); then the models' advisory locks: of several models pg_try_, of one with a wait of
--   at most 200 ms; then task rows, which are never waited for.
-- Why: if a claim scans far more index entries than it takes, dead entries are piling up (an old snapshot blocks
--   vacuum). Later scans resume from cursors; at most 5 % of the time is spent looking behind them (decision 46). Tasks
--   of a pool that several of the models could take are shared out by weight first; what one model does not take, the
--   others take in the second round. The planner pins stand here for all that a claim calls (decision 19). Prompts of
--   up to 64 MB pass through memory and not through temporary files: hence work_mem.
create or replace function llmqueue.claim(
    p_worker uuid, p_models text[], p_slots integer, p_maintenance text[] default '{}', p_running integer default 0,
    p_hot_slots integer default 0, p_claim_state jsonb default null)
returns setof llmqueue_internal.claim_row language plpgsql volatile
security definer set search_path = pg_catalog, pg_temp set work_mem = '64MB' set jit = off
set plan_cache_mode = force_generic_plan set enable_seqscan = off set enable_hashjoin = off set enable_mergejoin = off
set enable_bitmapscan = off set enable_sort = off as $$
declare
    v_models text[] := coalesce(p_models, array(select c.model from llmqueue.model_config c
                                                where c.enabled order by random()));
    v_state record;    -- what the worker brings along
    v_epoch integer;
    v_shares jsonb := '{}';
    v_left jsonb;      -- shares that were not taken yet
    v_able text[];     -- of several models those that have a task to take; null: all are looked at
    -- of several models those that are configured: with v_is_more it saves most calls of empty_reason()
    v_known text[];
    v_is_more boolean; -- a pool has more than was shared out
    v_refusals llmqueue_internal.claim_row[] := array[]::llmqueue_internal.claim_row[];
    v_row llmqueue_internal.claim_row;
    v_granted llmqueue_internal.model_claim;
    v_task llmqueue_internal.running_task;
    v_cold integer := p_slots;
    v_hot integer := p_hot_slots;
    v_slots constant integer := case when p_slots > 0 then p_slots else p_hot_slots end;   -- what is shared out
    v_cursors llmqueue_internal.resume_cursor[];
    v_kept_cursors llmqueue_internal.resume_cursor[];
    v_is_back boolean := false;   -- tasks were found behind cursors
    v_looked_at timestamptz;
    v_took interval;
    v_read bigint;                -- entries read before this claim
    v_many constant bigint := 2000::bigint;   -- entries read for nothing
    v_taken integer := 0;
begin
    perform set_config('search_path', llmqueue_internal.owners_path(), true);   -- until this function ends
    if current_setting('transaction_isolation') <> 'read committed' then
        raise exception 'claim needs READ COMMITTED, this transaction is %', current_setting('transaction_isolation')
            using errcode = 'LQ001',
                  hint = 'call it in autocommit mode, with default_transaction_isolation = read committed';
    end if;
    if current_setting('synchronous_commit') in ('off', 'local') then
        perform set_config('synchronous_commit', 'on', true);
    end if;
    set constraints all immediate;   -- a deferred constraint of the owner's would fail the whole claim at its COMMIT
    v_state := llmqueue_internal.read_claim_state(p_claim_state);
    v_cursors := v_state.cursors;
    v_epoch := llmqueue_internal.check_epoch(v_state.seen);   -- before anything is swept or granted
    if cardinality(p_maintenance) > 0 then
        perform llmqueue.maintain(p_worker, p_maintenance, p_running);
    end if;
    if not exists (select from llmqueue.worker w where w.worker = p_worker) then
        raise exception 'worker % is not registered', p_worker using errcode = 'LQ002';
    end if;

    v_read := llmqueue_internal.entries_read();
    if p_claim_state is null then   -- a worker that has just come
        v_cursors := array(select (l.lane, null, null, first.waiting_since, first.task_id, 0)
                                  ::llmqueue_internal.resume_cursor
                             from (select distinct unnest(llmqueue_internal.model_lanes(m.model)) as lane
                                     from unnest(v_models) m(model)) l
                            cross join lateral llmqueue_internal.first_waiting(l.lane, null) first
                            where first.waiting_since is not null);
        if llmqueue_internal.entries_read() - v_read <= v_many then
            v_cursors := null;
        end if;
    elsif cardinality(v_cursors) > 0
          and (v_state.look_at - extract(epoch from clock_timestamp())::double precision between 0 and 60)
              is not true then
        v_looked_at := clock_timestamp();
        v_kept_cursors := llmqueue_internal.look_behind(v_cursors);
        v_is_back := cardinality(v_kept_cursors) < cardinality(v_cursors);
        v_took := clock_timestamp() - v_looked_at;
        v_state.look_at := extract(
            epoch from clock_timestamp() + least(20 * v_took, interval '50 s'))::double precision;
        if v_is_back or llmqueue_internal.entries_read() - v_read > v_many / 5 then
            v_cursors := v_kept_cursors;
        else
            v_cursors := null;   -- what had gone has been removed
        end if;
    end if;

    if cardinality(v_models) > 1 then
        v_shares := llmqueue_internal.share_out(v_models, v_slots, v_state.served, v_cursors, p_slots <= 0);
        v_able := llmqueue_internal.models_with_tasks(v_models, v_shares, p_slots, llmqueue_internal.clock(),
                                                      v_cursors);
        v_known := array(select c.model from llmqueue.model_config c where c.model = any (v_models));
        v_is_more := jsonb_path_exists(v_shares, '$.* ? (@.is_more == true)');
    end if;
    v_left := v_shares;
    for v_round in 1..2 loop
        if v_round = 2 then
            -- what some had no room for, by weight among the others
            v_shares := llmqueue_internal.share_out(
                array(select m.model from unnest(v_models) with ordinality m(model, no)
                       where coalesce((v_refusals[m.no]).reason, 'empty') = 'empty'),
                case when p_slots > 0 then v_cold else v_hot end, v_state.served, v_cursors, p_slots <= 0);
            v_left := v_shares;
        end if;
        for v_no in 1..coalesce(cardinality(v_models), 0) loop
            exit when v_cold + v_hot <= 0;
            continue when v_round = 2 and coalesce((v_refusals[v_no]).reason, 'empty') <> 'empty';
            if v_round = 1 and v_models[v_no] <> all (v_able) then
                v_row := null;
                v_row.model := v_models[v_no];
                v_row.reason := case when v_is_more or v_models[v_no] <> all (v_known)
                                     then llmqueue_internal.empty_reason(v_models[v_no], v_left) else 'empty' end;
                v_granted.tasks := array[]::llmqueue_internal.running_task[];
            else
                v_granted := llmqueue_internal.claim_model(
                    p_worker, v_models[v_no], coalesce(cardinality(p_models), 0) = 1, v_left, v_state.users,
                    v_cold, v_hot, v_cursors);
                v_row := v_granted.refusal;
                v_state.users := v_granted.users;
                v_cursors := v_granted.cursors;
            end if;
            if v_cold <= 0 and p_slots > 0 and v_row.reason = 'empty' then
                v_row.reason := null;   -- only hot tasks were looked for, which says nothing about the others
            end if;
            v_refusals[v_no] := v_row;
            v_taken := v_taken + cardinality(v_granted.tasks);
            foreach v_task in array v_granted.tasks loop
                v_row.task := v_task;
                v_state.seen := greatest(v_state.seen, v_task.fence);
                return next v_row;
                if v_task.is_hot and v_hot > 0 then
                    v_hot := v_hot - 1;
                else
                    v_cold := v_cold - 1;
                end if;
                if v_shares <> '{}' and v_left #> array[v_task.lane, 'models', v_models[v_no]] is not null then
                    v_left := jsonb_set(v_left, array[v_task.lane, 'models', v_models[v_no], 'tasks'],
                        to_jsonb((v_left #>> array[v_task.lane, 'models', v_models[v_no], 'tasks'])::integer - 1));
                end if;
            end loop;
        end loop;
        exit when v_shares = '{}';
        v_state.served := llmqueue_internal.note_served(v_state.served, v_shares, v_left, v_refusals);
        exit when case when p_slots > 0 then v_cold else v_hot end <= 0
               or not jsonb_path_exists(v_left, '$.*.models.*.tasks ? (@ > 0)');
    end loop;

    if v_cursors is null and llmqueue_internal.entries_read() - v_read > v_many + 20 * v_taken then
        v_cursors := array[]::llmqueue_internal.resume_cursor[];
    elsif v_is_back then   -- and was read anew, which takes longer than the look
        v_state.look_at := extract(epoch from clock_timestamp() + least(
            20 * (clock_timestamp() - v_looked_at), greatest(20 * v_took, interval '2 s'), interval '50 s')
        )::double precision;
    end if;
    p_claim_state := jsonb_build_object(
        'users', v_state.users, 'served', v_state.served, 'seen', v_state.seen, 'epoch', v_epoch);
    if v_cursors is not null then
        p_claim_state := p_claim_state
            || jsonb_build_object('cursors', to_jsonb(v_cursors), 'look_at', v_state.look_at);
    end if;
    foreach v_row in array v_refusals loop
        continue when v_row.model is null;
        v_row.claim_state := p_claim_state;
        p_claim_state := null;   -- once is enough
        return next v_row;
    end loop;
end
$$;
comment on function llmqueue.claim is
    'Grants calls and claims tasks for them, for several models in one call. For workers.';
