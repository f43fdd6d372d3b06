-- What it does: takes up to p_calls ready tasks of a model for a worker, best first, and logs an attempt for each.
-- Returns: the tasks as llmqueue.leased rows, in order.
-- Locks: rows of the user's table, FOR NO KEY UPDATE SKIP LOCKED; never waits for one.
-- Why: priorities are stepped through one by one (a loose index scan), so rows that are not due end the range of their
--   priority instead of standing in the way of the next (I13).
create or replace function llmqueue.lease(
    p_worker uuid, p_model text, p_calls integer, p_cell bigint, p_rpm integer, p_now timestamptz)
returns setof llmqueue.leased language plpgsql volatile
set jit = off set enable_seqscan = off set enable_hashjoin = off set enable_mergejoin = off set enable_bitmapscan = off as $$
declare
    v_left integer := p_calls;
    v_most bigint := 9223372036854775807;
    v_rank bigint;
    v_due_at timestamptz;   -- when the first of that priority is due
    v_rows llmqueue.leased[];
begin
    loop
        select next.rank::bigint, next.due_at into v_rank, v_due_at
          from unnest(array[p_model, '']) lanes(lane)
         cross join lateral (select t.rank, t.due_at from llmqueue.task t
                              where t.is_ready and t.lane = lanes.lane and t.rank <= v_most
                              order by t.rank desc, t.due_at limit 1) next
         order by next.rank desc, next.due_at limit 1;
        exit when v_rank is null;
        if v_due_at <= p_now then
            v_rows := llmqueue.lease_rank(p_worker, p_model, v_rank, v_left, p_cell, p_rpm, p_now);
            return query select * from unnest(v_rows);
            v_left := v_left - cardinality(v_rows);
        end if;
        exit when v_left <= 0 or v_rank = -9223372036854775808;
        v_most := v_rank - 1;
    end loop;
end
$$;
