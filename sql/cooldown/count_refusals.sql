-- What it does: counts how often a task was refused by models since it last ended.
-- Returns: the number, at most p_limit.
-- Locks: none.
-- Why: a refusal costs no attempt, but a task that is always refused must end some day (I11).
create or replace function llmqueue_internal.count_refusals(p_task_id llmqueue.task_id, p_limit integer)
returns integer language plpgsql stable as $$
begin
    return (select count(*)::integer
              from (select from llmqueue.attempt r
                     where r.task_id = p_task_id and r.outcome = 'refused'
                       and r.fence > coalesce((select max(e.fence) from llmqueue.attempt e
                                                where e.task_id = p_task_id
                                                  and e.outcome in ('completed', 'buried')), 0)
                     limit p_limit) x);
end
$$;
