-- What it does: adds marks to those that a claim has, in place of older ones of the same lane, priority and user.
-- Returns: at most 200 marks, the new ones first; null if none are needed.
-- Locks: none.
-- Why: they travel with the worker's claims, and each step of a claim looks through them.
create or replace function llmqueue.marks_after(p_marks llmqueue.mark[], p_new llmqueue.mark[])
returns llmqueue.mark[] language sql immutable as $$
    select case when p_marks is null or coalesce(cardinality(p_new), 0) = 0 then p_marks
                else array(select x.mark
                             from (select n::llmqueue.mark as mark from unnest(p_new) n
                                   union all
                                   select o::llmqueue.mark from unnest(p_marks) o
                                    where not exists (select from unnest(p_new) n
                                                       where n.lane = o.lane and n.rank is not distinct from o.rank
                                                         and n.user_key is not distinct from o.user_key)) x
                            limit 200) end
$$;
