-- What it does: takes up to p_calls ready tasks of one priority, or with p_rank null the oldest, from the lanes of a model.
-- Returns: what was taken before and now. is_blocked: the next in order does not fit now; it keeps its place, and nothing
--   behind it is taken (I5).
-- Locks: rows of the user's table, FOR NO KEY UPDATE SKIP LOCKED; never waits for one.
-- Why: rows that turn out to be of no use (past their deadline, too large, set aside) are made up for by another pass. When
--   somebody else's transaction holds the heads, the lanes are taken one after the other, past them. At most 100 passes:
--   the model's lock is held.
create or replace function llmqueue_internal.dequeue_some(
    p_worker uuid, p_budget llmqueue_internal.budget, p_batch llmqueue_internal.batch, p_rank bigint, p_calls integer, p_now timestamptz)
returns llmqueue_internal.batch language plpgsql volatile as $$
declare
    v_batch llmqueue_internal.batch := p_batch;
    v_with_size constant boolean := p_budget.bytes_ratio is not null;
    v_left integer := p_calls;
    v_only integer := 0;   -- which lane alone; 0: all together
    v_found record;
    v_fitting record;
    v_rows llmqueue_internal.running_task[];
    v_skip llmqueue.task_id[] := array[]::llmqueue.task_id[];
    v_is_all boolean;
    v_ended integer := 0;   -- dead letters on the way: each is an UPDATE under the model's lock
    v_tries integer := 0;
begin
    for v_pass in 1..100 loop
        exit when v_left <= 0 or v_batch.is_blocked;
        if p_rank is null then
            select f.picked, f.seen, false as has_more, null::jsonb as looked, f.cursors into v_found
              from llmqueue_internal.pick_by_age(
                       case when v_only = 0 then v_batch.lanes else v_batch.lanes[v_only:v_only] end,
                       case when v_only = 0 then v_batch.most else v_batch.most[v_only:v_only] end,
                       v_left, v_skip, v_with_size, p_now, v_batch.cursors) f;
        else
            v_found := llmqueue_internal.pick_by_priority(
                case when v_only = 0 then v_batch.lanes else v_batch.lanes[v_only:v_only] end,
                case when v_only = 0 then v_batch.most else v_batch.most[v_only:v_only] end,
                v_batch.users, p_rank, v_left, v_skip, v_with_size, p_now, v_batch.cursors);
        end if;
        if v_pass = 1 and v_batch.cursors is not null then   -- a later pass leaves those out that do not fit this model now, and they are still there
            v_batch.cursors := llmqueue_internal.advance_cursors(v_batch.cursors, v_found.cursors);
        end if;
        v_is_all := v_found.seen < v_left and not v_found.has_more;
        v_fitting := llmqueue_internal.admit(p_budget, v_batch, v_found.picked, p_now);
        v_skip := v_skip || v_fitting.unfit;
        v_rows := llmqueue_internal.mark_each_running(p_worker, p_budget, v_fitting.candidates, p_now);
        v_batch := llmqueue_internal.note_taken(v_batch, v_rows, p_rank is null);
        if p_rank is not null then   -- age sets no turns back
            v_batch.users := llmqueue_internal.users_after(v_batch.users, p_rank, v_found.looked, v_fitting.users);
        end if;
        v_batch.is_blocked := v_fitting.is_blocked;
        v_batch.next_tokens := v_fitting.next_tokens;
        v_batch.next_output_tokens := v_fitting.next_output_tokens;
        v_batch.next_is_hot := v_fitting.next_is_hot;
        v_left := v_left - cardinality(v_rows);
        v_ended := v_ended + v_fitting.ended;
        v_batch.has_more := v_batch.has_more or v_ended >= 200 or (v_pass = 100 and v_ended > 0);
        exit when v_is_all or v_batch.has_more or cardinality(v_skip) > 300;
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
