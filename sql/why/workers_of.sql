-- What it does: counts the workers that could claim tasks of a model (null: of any), and those of them that cannot
--   reach the backend.
-- Returns: one row: live (heartbeat within the lease, not draining); serving (live, and takes this model); idle
--   (serving, and waits for work); running (calls in flight in the serving ones); draining; troubled (serving, but
--   cannot call the backend); trouble: null while troubled is 0, else since when the first of them has trouble, what
--   the last one reported, and the names of up to three.
-- Locks: none.
-- Why: a task whose model no live worker serves waits for a person, not for a limit; while all workers that serve it
--   have trouble, it waits for the backend. A worker lives by the rule of sweep().
create or replace function llmqueue_internal.workers_of(
    p_model text, p_now timestamptz, out live bigint, out serving bigint, out idle bigint, out running bigint,
    out draining bigint, out troubled bigint, out trouble jsonb)
language sql stable as $$
    select count(*) filter (where not w.is_draining),
           count(*) filter (where w.serves),
           count(*) filter (where w.serves and w.is_idle),
           coalesce(sum(w.running) filter (where w.serves), 0)::bigint,
           count(*) filter (where w.is_draining),
           count(w.trouble) filter (where w.serves),
           case when count(w.trouble) filter (where w.serves) > 0 then jsonb_build_object(
               'troubled', count(w.trouble) filter (where w.serves),
               'serving', count(*) filter (where w.serves),
               'since', min(w.troubled_at) filter (where w.serves),
               'trouble', (array_agg(w.trouble order by w.troubled_at desc)
                              filter (where w.serves and w.trouble is not null))[1],
               'names', (array_agg(w.name order by w.name)
                            filter (where w.serves and w.trouble is not null))[1:3]) end
      from (select x.name, x.is_draining, x.running, x.backend_trouble as trouble, x.backend_troubled_at as troubled_at,
                   not x.is_draining and (p_model is null or x.models is null or p_model = any (x.models)) as serves,
                   exists (select from llmqueue.idle_worker i where i.worker = x.worker) as is_idle
              from llmqueue.worker x
             where abs(extract(epoch from p_now - x.heartbeat_at)) < x.lease_s limit 10000) w
$$;
