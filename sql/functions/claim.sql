-- What it does: grants calls and claims tasks for them, for several models in one call; a grant and its claim are one
--   transaction. Chores that are due ride along, so that an idle worker needs one query a second.
-- Returns: a row per claimed task (task_id not null) and, per model asked, one row with the verdict: reason null (all
--   that was wanted), 'rpm', 'pace', 'concurrency', 'empty', 'paused', 'contended', 'unknown', and retry_in_s.
--   waited_s is grant time − start of the statement, clock_at the database's clock at the grant.
-- Locks: the models' advisory locks: several with pg_try_, one with a wait of at most 200 ms; then task rows, which are
--   never waited for.
-- Why: the lock is a statement of its own in a VOLATILE function under READ COMMITTED, so that what follows sees all
--   that was committed under the lock before; the clock is read after it. Lock, read and write in one statement granted
--   6,400 against a limit of 1,000 (design I1).
create or replace function llmqueue.claim(
    p_worker uuid, p_models text[], p_slots integer, p_chores text[] default '{}', p_running integer default 0,
    p_now timestamptz default null)
returns setof llmqueue.claimed language plpgsql volatile as $$
declare
    v_config llmqueue.model_config;
    v_allowed record;
    v_claimed llmqueue.claimed;
    v_task llmqueue.leased;
    v_model text;
    v_pool_waits boolean;
    v_now timestamptz;
    v_slots integer := p_slots;
    v_room integer;
    v_taken integer;
    v_guard_s double precision;
begin
    if current_setting('transaction_isolation') <> 'read committed' then
        raise exception 'claim needs READ COMMITTED, this transaction is %', current_setting('transaction_isolation')
            using errcode = 'LQ001', hint = 'call it in autocommit mode, with default_transaction_isolation = read committed';
    end if;
    if current_setting('synchronous_commit') in ('off', 'local') then
        perform set_config('synchronous_commit', 'on', true);
    end if;
    set constraints all immediate;   -- a deferred constraint of the owner's would fail the whole claim at its COMMIT
    perform llmqueue.do_chores(p_worker, p_chores, p_running, p_now);
    if not exists (select from llmqueue.worker w where w.worker = p_worker) then
        raise exception 'worker % is not registered', p_worker using errcode = 'LQ002';
    end if;
    select l.guard_s into v_guard_s from llmqueue.limiter l;
    v_pool_waits := llmqueue.has_ready('');

    foreach v_model in array coalesce(p_models, array(select c.model from llmqueue.model_config c where c.enabled order by random())) loop
        v_claimed := null;
        v_claimed.model := v_model;
        v_claimed.guard_s := v_guard_s;
        if not v_pool_waits and not llmqueue.has_ready(v_model) then
            v_claimed.reason := 'empty';
        elsif not llmqueue.lock_model(v_model, coalesce(cardinality(p_models), 0) = 1) then
            v_claimed.reason := 'contended';
        else
            v_now := coalesce(p_now, clock_timestamp());
            select c.* into v_config from llmqueue.model_config c where c.model = v_model;
            if not found or not v_config.enabled or v_config.rpm = 0 then
                v_claimed.reason := case when v_config.model is null then 'unknown' else 'paused' end;
            else
                perform llmqueue.hold_clock(v_model, v_now);
                v_room := llmqueue.room(v_model, v_config.max_concurrency);
                select * into v_allowed
                  from llmqueue.allowance(v_model, v_config.rpm, least(v_slots, v_room), v_now);
                v_claimed.reason := case when v_room < v_slots then coalesce(v_allowed.reason, 'concurrency') else v_allowed.reason end;
                v_claimed.retry_in_s := extract(epoch from v_allowed.retry_at - v_now)::double precision;
                v_claimed.clock_at := v_now;
                v_claimed.waited_s := extract(epoch from v_now - case when p_now is null then statement_timestamp() else p_now end)::double precision;
                v_claimed.timeout_s := extract(epoch from v_config.timeout)::double precision;
                v_taken := 0;
                if v_allowed.calls > 0 then
                    for v_task in
                        select * from llmqueue.lease(p_worker, v_model, v_allowed.calls, v_allowed.cell, v_config.rpm,
                                                     v_allowed.granted_at)
                    loop
                        v_taken := v_taken + 1;
                        v_claimed.task := v_task;
                        return next v_claimed;
                    end loop;
                    v_claimed.task := null;
                    if v_taken > 0 then
                        perform llmqueue.charge(v_model, v_taken, v_allowed.cell, v_allowed.level - v_taken,
                                                v_allowed.granted_at, v_allowed.open_cell, v_allowed.open_calls);
                    end if;
                    if v_taken < v_allowed.calls then
                        v_claimed.reason := 'empty';
                        v_claimed.retry_in_s := null;
                    end if;
                    v_slots := v_slots - v_taken;
                end if;
            end if;
        end if;
        return next v_claimed;
        exit when v_slots <= 0;
    end loop;
end
$$;
