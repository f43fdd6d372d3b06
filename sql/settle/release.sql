-- What it does: gives back tasks that were never sent, with their attempts and their grants.
-- Returns: how many attempts were released.
-- Locks: attempt rows; settle() has locked the tasks before.
-- Why: an unsent call costs neither an attempt nor a grant. The end of the attempt shows that the charge was refunded.
create or replace function llmqueue_internal.release(p_worker uuid, p_items jsonb, p_now timestamptz)
returns integer language plpgsql volatile as $$
declare
    v_fences bigint[];
begin
    with given as materialized (
        select i.fence, i.task_id, i.error_class
          from jsonb_to_recordset(p_items) as i(fence bigint, task_id llmqueue.task_id, error_class text)
         cross join lateral (select from llmqueue.attempt a
                              where a.fence = i.fence and a.worker = p_worker and a.task_id = i.task_id
                                and a.outcome is null limit 1) a
    ), applied as (
        update llmqueue.task t
           set status = llmqueue_internal.status_word('unsolved'), attempts = t.attempts - 1, run_at = p_now
          from given g
         where t.id = g.task_id and t.is_running and t.fence = g.fence
    ), ended as (
        update llmqueue.attempt a
           set ended_at = p_now, outcome = 'released', error_class = g.error_class
          from given g
         where a.fence = g.fence and a.outcome is null
        returning a.fence
    )
    select array_agg(ended.fence) into v_fences from ended;
    perform llmqueue_internal.refund(v_fences);
    return coalesce(cardinality(v_fences), 0);
end
$$;
