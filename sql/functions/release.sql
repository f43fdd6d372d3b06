-- What it does: gives tasks back that were never sent, with their attempt and their grant.
-- Returns: how many attempts were released.
-- Locks: task rows in the order given, then attempt rows. Not the model's lock: a refund is an insert, and a grant that
--   does not see it yet is only too careful.
-- Why: an unsent call is refunded once, to the cell that was charged (I4); the attempt's end says that it was done.
--   A charge that fill_ledger() has dropped with a clock that stepped back is not refunded: the refund alone would be
--   leave to call. Its row is locked, so that this cannot happen between the look and the COMMIT.
create or replace function llmqueue.release(p_worker uuid, p_items jsonb, p_now timestamptz default null)
returns integer language plpgsql volatile
set jit = off set enable_seqscan = off set enable_hashjoin = off set enable_mergejoin = off as $$
declare
    v_now timestamptz := coalesce(p_now, clock_timestamp());
    v_released integer;
begin
    with given as materialized (
        select i.fence, i.task_id, i.error_class, a.model, a.cell
          from jsonb_to_recordset(p_items) as i(fence bigint, task_id llmqueue.task_id, error_class text)
         cross join lateral (select a.model, a.cell from llmqueue.attempt a
                              where a.fence = i.fence and a.worker = p_worker and a.task_id = i.task_id
                                and a.outcome is null limit 1) a
    ), applied as (
        update llmqueue.task t
           set status = llmqueue.status_word('unsolved'), attempts = t.attempts - 1, run_at = v_now
          from given g
         where t.id = g.task_id and t.is_running and t.fence = g.fence
    ), ended as (
        update llmqueue.attempt a
           set ended_at = v_now, outcome = 'released', error_class = g.error_class
          from given g
         where a.fence = g.fence and a.outcome is null
        returning a.model, a.cell, a.granted_at
    ), refunded as (
        insert into llmqueue.ledger_cell (model, cell, calls)
        select e.model, e.cell, -count(*)
          from ended e
         where exists (select from llmqueue.ledger_grant g
                        where g.model = e.model and g.cell = e.cell and g.granted_at = e.granted_at for key share)
         group by e.model, e.cell
    )
    select count(*)::integer into v_released from ended;
    return v_released;
end
$$;
