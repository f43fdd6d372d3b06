-- What it does: adds leased tasks to what a claim has taken.
-- Returns: the sum.
-- Locks: none.
-- Why: a task whose UPDATE raised was a candidate and is not leased: it is not charged, and costs its lane nothing.
create or replace function llmqueue.note_taken(
    p_taking llmqueue.taking, p_rows llmqueue.leased[], p_is_by_age boolean)
returns llmqueue.taking language plpgsql immutable as $$
declare
    v_taking llmqueue.taking := p_taking;
    v_row llmqueue.leased;
    v_lane integer;
begin
    if cardinality(p_rows) = 0 then
        return v_taking;
    end if;
    foreach v_row in array p_rows loop
        v_taking.hot_calls := v_taking.hot_calls + v_row.is_hot::integer;
        if v_row.tokens is not null then
            v_taking.tokens := v_taking.tokens + v_row.tokens;
            v_taking.output_tokens := v_taking.output_tokens + coalesce(v_row.output_tokens, 0::bigint);
        end if;
        v_lane := array_position(v_taking.lanes, v_row.lane);
        v_taking.most[v_lane] := v_taking.most[v_lane] - 1;
    end loop;
    v_taking.calls := v_taking.calls + cardinality(p_rows);
    v_taking.aged := v_taking.aged + case when p_is_by_age then cardinality(p_rows) else 0 end;
    v_taking.rows := v_taking.rows || p_rows;
    return v_taking;
end
$$;
