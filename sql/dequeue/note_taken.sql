-- What it does: adds leased tasks to what a claim has taken.
-- Returns: the sum.
-- Locks: none.
-- Why: a task whose UPDATE raised was a candidate and is not leased: it is not charged, and costs its lane nothing.
create or replace function llmqueue_internal.note_taken(
    p_batch llmqueue_internal.batch, p_rows llmqueue_internal.running_task[], p_is_by_age boolean)
returns llmqueue_internal.batch language plpgsql immutable as $$
declare
    v_batch llmqueue_internal.batch := p_batch;
    v_row llmqueue_internal.running_task;
    v_lane integer;
begin
    if cardinality(p_rows) = 0 then
        return v_batch;
    end if;
    foreach v_row in array p_rows loop
        v_batch.hot_calls := v_batch.hot_calls + v_row.is_hot::integer;
        if v_row.tokens is not null then
            v_batch.tokens := v_batch.tokens + v_row.tokens;
            v_batch.output_tokens := v_batch.output_tokens + coalesce(v_row.output_tokens, 0::bigint);
        end if;
        v_lane := array_position(v_batch.lanes, v_row.lane);
        v_batch.most[v_lane] := v_batch.most[v_lane] - 1;
    end loop;
    v_batch.calls := v_batch.calls + cardinality(p_rows);
    v_batch.aged := v_batch.aged + case when p_is_by_age then cardinality(p_rows) else 0 end;
    v_batch.rows := v_batch.rows || p_rows;
    return v_batch;
end
$$;
