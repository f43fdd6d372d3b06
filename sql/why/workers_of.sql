-- What it does: counts the workers that could claim tasks of a model (null: of any).
-- Returns: one row: live (heartbeat within the lease, not draining), serving (those of them that take this model), idle
--   (those of them that wait for work), running (calls in flight in them), draining.
-- Locks: none.
-- Why: a task whose model no live worker serves waits for a person, not for a limit.
create or replace function llmqueue_internal.workers_of(
    p_model text, p_now timestamptz, out live bigint, out serving bigint, out idle bigint, out running bigint, out draining bigint)
language sql stable as $$
    select count(*) filter (where not w.is_draining),
           count(*) filter (where not w.is_draining and w.takes_it),
           count(*) filter (where not w.is_draining and w.takes_it and w.is_idle),
           coalesce(sum(w.running) filter (where not w.is_draining and w.takes_it), 0)::bigint,
           count(*) filter (where w.is_draining)
      from (select x.is_draining, x.running,
                   p_model is null or x.models is null or p_model = any (x.models) as takes_it,
                   exists (select from llmqueue.idle_worker i where i.worker = x.worker) as is_idle
              from llmqueue.worker x
             where abs(extract(epoch from p_now - x.heartbeat_at)) < x.lease_s limit 10000) w
$$;
