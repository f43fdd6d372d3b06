-- What it does: says what keeps a model from taking a ready task, were it the first in its lane.
-- Returns: one row: reason, null when nothing does; until_at where a time is known; detail with the numbers behind it.
-- Locks: none: the answer may be out of date when it is read.
-- Why: a part of why(), by the same functions as a claim without its lock. The reasons come in the order in which
--   somebody must act: what no time heals comes first.
create or replace function llmqueue_internal.why_model(
    p_model text, p_task_id llmqueue.task_id, p_now timestamptz,
    out reason text, out until_at timestamptz, out detail jsonb)
language plpgsql stable as $$
declare
    v_config llmqueue.model_config;
    v_task record;
    v_state record;
    v_budget llmqueue_internal.budget;
    v_charge llmqueue_internal.charged_task;   -- tokens is null where tokens are not limited
    v_picked llmqueue_internal.locked_task;
    v_workers record;
    v_free record;
    v_is_hot boolean;
    v_most integer;
begin
    detail := '{}';
    select c.* into v_config from llmqueue.model_config c where c.model = p_model;
    if not found then
        reason := 'unknown';
        return;
    end if;
    detail := to_jsonb(v_config)
        - array['model', 'weight', 'timeout', 'hot_share', 'max_output', 'on_crash', 'dispatch', 'max_batch']
        || jsonb_build_object('effective_rpm', llmqueue_internal.effective_rpm(p_model, v_config.rpm, p_now));
    if not v_config.enabled
       or 0 in (v_config.rpm, v_config.tpm, v_config.output_tpm, v_config.rpd, v_config.tpd,
                v_config.max_concurrency) then
        reason := 'paused';
        return;
    end if;

    v_budget := llmqueue_internal.headroom(v_config, p_now);
    select t.rank, t.fence into strict v_task from llmqueue.task t where t.id = p_task_id;
    if v_budget.bytes_ratio is not null then
        select t.lane, octet_length(t.prompt_text), llmqueue_internal.max_output_of(t.params::text)
          into strict v_picked.lane, v_picked.bytes, v_picked.max_output
          from llmqueue.task t where t.id = p_task_id;
        -- what an earlier attempt at this model was charged counts, as in admit()
        v_charge := llmqueue_internal.estimate_charge(v_budget, v_picked.bytes, v_picked.max_output,
            (select a.input_charge from llmqueue.attempt a where a.fence = v_task.fence and a.model = p_model));
    end if;
    detail := detail || jsonb_build_object('tokens', v_charge.tokens, 'output_tokens', v_charge.output_tokens);
    if llmqueue_internal.oversize_error(v_config, v_charge) is not null then
        reason := 'never_fits';
        detail := detail
            || jsonb_build_object('fits_elsewhere', llmqueue_internal.fits_elsewhere(v_picked, p_model));
        return;
    end if;

    select * into strict v_workers from llmqueue_internal.workers_of(p_model, p_now);
    detail := detail || jsonb_build_object('workers', to_jsonb(v_workers) - array['troubled', 'trouble']);
    if v_workers.serving = 0 then
        reason := 'no_worker';
        return;
    end if;
    if v_workers.troubled > 0 then
        detail := detail || jsonb_build_object('backend', v_workers.trouble);
    end if;
    if v_workers.troubled >= v_workers.serving then
        reason := 'backend';
        return;
    end if;

    -- as check_cooldown() sees it, which locks, and ends a cooldown whose probe is being answered: why() must not
    select s.cooldown_until, s.cooldown_reason,
           (select a.granted_at + interval '5 seconds' from llmqueue.attempt a
             where a.fence = s.probe_fence and a.ended_at is null) as probed_until
      into v_state from llmqueue.model_state s where s.model = p_model and s.cooldown_until is not null;
    if v_state.cooldown_until > p_now or v_state.probed_until > p_now then
        reason := case when v_state.cooldown_until > p_now then 'cooldown' else 'probe' end;
        until_at := case when v_state.cooldown_until > p_now then v_state.cooldown_until else v_state.probed_until end;
        detail := detail || jsonb_build_object('cooldown_reason', v_state.cooldown_reason);
        return;
    end if;

    v_is_hot := v_task.rank >= llmqueue_internal.hot_priority();
    v_most := llmqueue_internal.effective_concurrency(p_model, v_config.max_concurrency, p_now);
    select r.cold, r.hot into strict v_free
      from llmqueue_internal.free_concurrency(p_model, v_most, v_config.hot_share) r;
    if (case when v_is_hot then v_free.hot else v_free.cold end) <= 0 then
        reason := 'concurrency';
        detail := detail || jsonb_build_object('most_in_flight', v_most, 'kept_for_hot', greatest(v_free.hot, 0));
        return;
    end if;

    select w.reason, w.retry_at into reason, until_at
      from llmqueue_internal.when_free(v_budget, v_is_hot, 1, v_charge.tokens, v_charge.output_tokens) w;
    if reason is null then
        until_at := null;
        return;
    end if;
    detail := detail || jsonb_build_object('calls_60s', (llmqueue_internal.count_60s(p_model, p_now)).calls);
    if reason = 'rpm' and (select true from llmqueue.ledger_cell c
                            where c.model = p_model and c.calls >= llmqueue_internal.ledger_full()
                              and c.cell > llmqueue_internal.cell_of(p_now, 61)   -- a window and a second more
                            limit 1) then
        reason := 'clock';
    end if;
end
$$;
