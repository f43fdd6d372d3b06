-- What it does: adds leased tasks to what a claim has taken.
-- Returns: the sum.
-- Locks: none.
-- Why: a task whose UPDATE raised was a candidate and is not leased: it is not charged, and costs its lane nothing.
create or replace function llmqueue.note_taken(
    p_taking llmqueue.taking, p_rows llmqueue.leased[], p_is_by_age boolean)
returns llmqueue.taking language plpgsql immutable as $$
declare
    v_taking llmqueue.taking := p_taking;
    v_lane record;
begin
    if cardinality(p_rows) = 0 then
        return v_taking;
    end if;
    for v_lane in
        select r.lane, count(*)::integer as tasks, (count(*) filter (where r.is_hot))::integer as hot,
               coalesce(sum(r.tokens), 0)::bigint as tokens, coalesce(sum(r.output_tokens), 0)::bigint as output_tokens
          from unnest(p_rows) r group by r.lane
    loop
        v_taking.calls := v_taking.calls + v_lane.tasks;
        v_taking.hot_calls := v_taking.hot_calls + v_lane.hot;
        v_taking.tokens := v_taking.tokens + v_lane.tokens;
        v_taking.output_tokens := v_taking.output_tokens + v_lane.output_tokens;
        v_taking.most[array_position(v_taking.lanes, v_lane.lane)] := v_taking.most[array_position(v_taking.lanes, v_lane.lane)] - v_lane.tasks;
    end loop;
    v_taking.aged := v_taking.aged + case when p_is_by_age then cardinality(p_rows) else 0 end;
    v_taking.rows := v_taking.rows || p_rows;
    return v_taking;
end
$$;
