-- What it does: takes up to p_calls ready tasks of one priority, from the model's own lane and from the default pool's.
-- Returns: the tasks, in order.
-- Locks: their rows, FOR NO KEY UPDATE SKIP LOCKED; never waits for one.
-- Why: only as many rows are locked as are taken, so each lane's share is found first: a row locked and not taken would
--   look like an empty lane to another model. Rows that turn out to be of no use (past their deadline, set aside) are
--   made up for by another pass. When somebody else's transaction holds the heads, the lanes are taken one after the
--   other, past them. At most 100 passes: the model's lock is held.
create or replace function llmqueue.lease_rank(
    p_worker uuid, p_model text, p_rank bigint, p_calls integer, p_cell bigint, p_rpm integer, p_now timestamptz)
returns llmqueue.leased[] language plpgsql volatile
set jit = off set enable_seqscan = off set enable_hashjoin = off set enable_mergejoin = off set enable_bitmapscan = off as $$
declare
    v_lanes text[] := array[p_model, ''];
    v_left integer := p_calls;
    v_seen bigint;
    v_ids llmqueue.task_id[];
    v_expired llmqueue.task_id[];
    v_rows llmqueue.leased[];
    v_all llmqueue.leased[] := array[]::llmqueue.leased[];
begin
    for v_pass in 1..100 loop
        with heads as materialized (
            select merged.lane, count(*) as share
              from (select lanes.lane, head.due_at, head.id
                      from unnest(v_lanes) lanes(lane)
                     cross join lateral (select t.due_at, t.id from llmqueue.task t
                                          where t.is_ready and t.lane = lanes.lane and t.rank = p_rank and t.due_at <= p_now
                                            and (select true from llmqueue.set_aside s where s.task_id = t.id) is null
                                          order by t.due_at, t.id limit v_left) head
                     order by head.due_at, head.id limit v_left) merged
             group by merged.lane
        ), ready as materialized (
            select row.*
              from heads
             cross join lateral (select t.id, t.due_at, t.deadline_at <= p_now as is_expired from llmqueue.task t
                                  where t.is_ready and t.lane = heads.lane and t.rank = p_rank and t.due_at <= p_now
                                    and (select true from llmqueue.set_aside s where s.task_id = t.id) is null
                                  order by t.due_at, t.id limit heads.share
                                    for no key update of t skip locked) row
        )
        select coalesce((array_agg(ready.id order by ready.due_at, ready.id)
                           filter (where ready.is_expired is not true))::llmqueue.task_id[], '{}'),
               coalesce((array_agg(ready.id) filter (where ready.is_expired))::llmqueue.task_id[], '{}'),
               (select coalesce(sum(heads.share), 0)::bigint from heads)
          into v_ids, v_expired, v_seen from ready;

        perform llmqueue.expire(v_expired, p_now);
        v_rows := llmqueue.lease_each(p_worker, p_model, v_ids, p_cell, p_rpm, p_now);
        v_all := v_all || v_rows;
        exit when cardinality(v_all) >= p_calls;
        if cardinality(v_expired) = 0 and cardinality(v_rows) = cardinality(v_ids) then
            exit when v_lanes = array[''] or (cardinality(v_lanes) = 2 and v_seen < v_left);
            v_lanes := case when cardinality(v_lanes) = 2 then array[p_model] else array[''] end;
        end if;
        v_left := p_calls - cardinality(v_all);
    end loop;
    return v_all;
end
$$;
