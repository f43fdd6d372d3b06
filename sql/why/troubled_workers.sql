-- What it does: says which of the workers that serve a model (null: any) have trouble with the backend, and what.
-- Returns: one row: troubled, of how many live workers that serve it; since when the first of them has it, what the last one
--   says, and the names of up to three.
-- Locks: none.
-- Why: while all of them have, a ready task waits for the backend, whatever the limits say. Who lives is told as in workers_of().
create or replace function llmqueue_internal.troubled_workers(
    p_model text, p_now timestamptz, out troubled bigint, out serving bigint, out since timestamptz, out trouble text, out names text[])
language sql stable as $$
    select count(w.backend_trouble), count(*), min(w.backend_troubled_at),
           (array_agg(w.backend_trouble order by w.backend_troubled_at desc) filter (where w.backend_trouble is not null))[1],
           (array_agg(w.name order by w.name) filter (where w.backend_trouble is not null))[1:3]
      from (select x.name, x.backend_trouble, x.backend_troubled_at
              from llmqueue.worker x
             where abs(extract(epoch from p_now - x.heartbeat_at)) < x.lease_s and not x.is_draining
               and (p_model is null or x.models is null or p_model = any (x.models)) limit 10000) w
$$;
