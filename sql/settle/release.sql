-- What it does: gives tasks back that were never sent, with their attempt and their grant.
-- Returns: how many attempts were released.
-- Locks: task rows in the order given, then attempt rows.
-- Why: an unsent call costs neither an attempt nor a grant; the attempt's end says that the refund was done.
create or replace function llmqueue_internal.release(p_worker uuid, p_items jsonb, p_now timestamptz)
returns integer language plpgsql volatile
set jit = off set plan_cache_mode = force_generic_plan set enable_seqscan = off set enable_hashjoin = off set enable_mergejoin = off as $$
declare
    v_now timestamptz := p_now;
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
           set status = llmqueue_internal.status_word('unsolved'), attempts = t.attempts - 1, run_at = v_now
          from given g
         where t.id = g.task_id and t.is_running and t.fence = g.fence
    ), ended as (
        update llmqueue.attempt a
           set ended_at = v_now, outcome = 'released', error_class = g.error_class
          from given g
         where a.fence = g.fence and a.outcome is null
        returning a.fence
    )
    select array_agg(ended.fence) into v_fences from ended;
    perform llmqueue_internal.refund(v_fences);
    return coalesce(cardinality(v_fences), 0);
end
$$;
