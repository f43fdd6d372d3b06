-- What it does: takes up to p_calls ready tasks of a model for a worker, best first, and logs an attempt for each.
-- Returns: the tasks as llmqueue.leased rows, in order.
-- Locks: rows of the user's table, FOR NO KEY UPDATE SKIP LOCKED; never waits for one.
-- Why: priorities are stepped through one by one (a loose index scan), so rows that are not due end the range of their
--   priority instead of standing in the way of the next (I13). Of the model's own lane and the default pool's, only as
--   many rows are locked as are taken: a row locked and not taken would look like an empty lane to another model.
create or replace function llmqueue.lease(
    p_worker uuid, p_model text, p_calls integer, p_cell bigint, p_rpm integer, p_now timestamptz)
returns setof llmqueue.leased language plpgsql volatile
set enable_seqscan = off set enable_hashjoin = off set enable_mergejoin = off set enable_bitmapscan = off as $$
declare
    v_lanes constant text[] := array[p_model, ''];
    v_left integer := p_calls;
    v_rank bigint := 9223372036854775807;
    v_ids llmqueue.task_id[];
    v_expired llmqueue.task_id[];
    v_rows llmqueue.leased[];
begin
    loop
        select max(next.rank)::bigint into v_rank
          from unnest(v_lanes) lanes(lane)
         cross join lateral (select t.rank from llmqueue.task t
                              where t.is_ready and t.lane = lanes.lane and t.rank < v_rank
                              order by t.rank desc limit 1) next;
        exit when v_rank is null;

        with heads as materialized (
            select merged.lane, count(*) as share
              from (select lanes.lane, head.due_at, head.id
                      from unnest(v_lanes) lanes(lane)
                     cross join lateral (select t.due_at, t.id from llmqueue.task t
                                          where t.is_ready and t.lane = lanes.lane and t.rank = v_rank and t.due_at <= p_now
                                          order by t.due_at, t.id limit v_left) head
                     order by head.due_at, head.id limit v_left) merged
             group by merged.lane
        ), ready as materialized (
            select row.*
              from heads
             cross join lateral (select t.id, t.due_at, t.deadline_at from llmqueue.task t
                                  where t.is_ready and t.lane = heads.lane and t.rank = v_rank and t.due_at <= p_now
                                    and not exists (select from llmqueue.set_aside s where s.task_id = t.id)
                                  order by t.due_at, t.id limit heads.share
                                    for no key update of t skip locked) row
        )
        select (array_agg(ready.id order by ready.due_at, ready.id)
                  filter (where ready.deadline_at is null or ready.deadline_at > p_now))::llmqueue.task_id[],
               (array_agg(ready.id) filter (where ready.deadline_at <= p_now))::llmqueue.task_id[]
          into v_ids, v_expired from ready;

        if v_expired is not null then
            perform llmqueue.expire(v_expired, p_now);
        end if;
        if v_ids is not null then
            v_rows := llmqueue.lease_each(p_worker, p_model, v_ids, p_cell, p_rpm, p_now);
            return query select * from unnest(v_rows);
            v_left := v_left - cardinality(v_rows);
            exit when v_left <= 0;
        end if;
    end loop;
end
$$;
