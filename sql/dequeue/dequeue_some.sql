-- What it does: takes up to p_calls ready tasks of one priority, or with p_rank null the oldest, from the lanes of a
--   model.
-- Returns: the batch with what was taken before and now. is_blocked: the next task in order does not fit now; it keeps
--   its place, and no task behind it is taken (I5). users: for the lanes that were looked at the user served last, else
--   the user looked at last.
-- Locks: rows of the user's table, FOR NO KEY UPDATE SKIP LOCKED; never waits for one.
-- Why: another pass makes up for rows that turn out to be of no use (past their deadline, too large, quarantined). When
--   somebody else's transaction holds the heads, the lanes are taken one after the other, past them. At most 100
--   passes: the model's lock is held. A task whose UPDATE raised is not charged, and costs its lane nothing. Users who
--   have nothing due, or whose rows somebody holds, are not looked at first again and again; that memory travels with
--   the worker's claims, so it is forgotten when it has grown to 500 users.
create or replace function llmqueue_internal.dequeue_some(
    p_worker uuid, p_budget llmqueue_internal.budget, p_batch llmqueue_internal.batch, p_rank bigint, p_calls integer,
    p_now timestamptz)
returns llmqueue_internal.batch language plpgsql volatile as $$
declare
    v_batch llmqueue_internal.batch := p_batch;
    v_with_size constant boolean := p_budget.bytes_ratio is not null;
    v_left integer := p_calls;
    v_lanes text[] := p_batch.lanes;     -- all together, or one alone
    v_most integer[] := p_batch.most;
    v_only integer := 0;                 -- which lane alone; 0: all together
    v_found record;
    v_admitted record;
    v_rows llmqueue_internal.running_task[];
    v_row llmqueue_internal.running_task;
    v_lane integer;
    v_users jsonb;
    v_skip llmqueue.task_id[] := array[]::llmqueue.task_id[];
    v_is_all boolean;
    v_ended integer := 0;                -- dead letters on the way: each is an UPDATE under the model's lock
    v_tries integer := 0;
begin
    for v_pass in 1..100 loop
        exit when v_left <= 0 or v_batch.is_blocked;
        if v_pass > 1 then
            v_lanes := case when v_only = 0 then v_batch.lanes else v_batch.lanes[v_only:v_only] end;
            v_most := case when v_only = 0 then v_batch.most else v_batch.most[v_only:v_only] end;
        end if;
        if p_rank is null then
            v_found := llmqueue_internal.pick_by_age(v_lanes, v_most, v_left, v_skip, v_with_size, p_now,
                                                     v_batch.cursors);
        else
            v_found := llmqueue_internal.pick_by_priority(
                v_lanes, v_most, v_batch.users, p_rank, v_left, v_skip, v_with_size, p_now, v_batch.cursors);
        end if;
        -- a later pass leaves those out that do not fit this model now, and they are still there
        if v_pass = 1 and v_batch.cursors is not null then
            v_batch.cursors := llmqueue_internal.advance_cursors(v_batch.cursors, v_found.cursors);
        end if;
        v_is_all := v_found.seen < v_left and not v_found.has_more;
        v_admitted := llmqueue_internal.admit(p_budget, v_batch, p_rank, v_found.picked, p_now);
        v_rows := llmqueue_internal.mark_each_running(p_worker, p_budget, v_admitted.candidates, p_now);
        foreach v_row in array v_rows loop
            if v_row.is_hot then
                v_batch.hot_calls := v_batch.hot_calls + 1;
            end if;
            if v_row.tokens is not null then
                v_batch.tokens := v_batch.tokens + v_row.tokens;
                v_batch.output_tokens := v_batch.output_tokens + coalesce(v_row.output_tokens, 0::bigint);
            end if;
            v_lane := array_position(v_batch.lanes, v_row.lane);
            v_batch.most[v_lane] := v_batch.most[v_lane] - 1;
        end loop;
        v_batch.calls := v_batch.calls + cardinality(v_rows);
        v_batch.rows := v_batch.rows || v_rows;
        if p_rank is null then
            v_batch.aged := v_batch.aged + cardinality(v_rows);   -- age sets no turns of users back
        else
            v_users := coalesce(v_found.looked, '{}'::jsonb) || v_admitted.users;
            if not v_batch.users @> v_users then
                if (select count(*) from jsonb_object_keys(v_batch.users)) >= 500 then
                    v_batch.users := '{}'::jsonb;
                end if;
                v_batch.users := v_batch.users || v_users;
            end if;
        end if;
        v_batch.is_blocked := v_admitted.is_blocked;
        v_batch.next_tokens := v_admitted.next_tokens;
        v_batch.next_output_tokens := v_admitted.next_output_tokens;
        v_batch.next_is_hot := v_admitted.next_is_hot;
        v_left := v_left - cardinality(v_rows);
        v_ended := v_ended + v_admitted.ended;
        v_batch.has_more := v_batch.has_more or v_ended >= 200 or (v_pass = 100 and v_ended > 0);
        exit when v_is_all or v_batch.has_more;
        v_skip := v_skip || v_admitted.unfit;
        exit when cardinality(v_skip) > 300;
        if cardinality(v_found.picked) = 0 then
            -- past users whose rows somebody holds; then the lanes one by one
            v_tries := v_tries + 1;
            if v_tries > 3 or not v_found.has_more then
                v_tries := 0;
                v_only := v_only + 1;
                exit when v_only > cardinality(v_batch.lanes);
            end if;
        end if;
    end loop;
    return v_batch;
end
$$;
