-- What it does: makes a worker known, or known again after it was swept, and agrees on the guard: the time after a
--   grant within which its call may reach the backend.
-- Returns: the guard that holds for all workers, in seconds.
-- Locks: the row of llmqueue.limiter.
-- Why: the ledger must look back as far as any worker may send late. A smaller guard is taken only by a worker that
--   is alone; after any change the largest of the old and new values holds for a window.
create or replace function llmqueue.register(
    p_worker uuid, p_name text, p_version text, p_models text[], p_lease_s double precision, p_guard_s double precision)
returns double precision language plpgsql volatile
security definer set search_path = pg_catalog, pg_temp as $$
declare
    v_now constant timestamptz := llmqueue_internal.clock();
    v_limiter llmqueue.limiter;
    v_is_alone boolean;
    v_before_s double precision;   -- the largest guard that a grant may still have
begin
    select l.* into strict v_limiter from llmqueue.limiter l for update;
    v_before_s := greatest(v_limiter.guard_s,
                           case when v_now < v_limiter.guard_kept_until then v_limiter.guard_before_s end);
    v_is_alone := not exists (
        select from llmqueue.worker w
         where w.worker <> p_worker and w.heartbeat_at > v_now - make_interval(secs => w.lease_s));
    if p_guard_s > v_limiter.guard_s or (v_is_alone and p_guard_s < v_limiter.guard_s) then
        update llmqueue.limiter l
           set guard_before_s = v_before_s, guard_s = p_guard_s,
               guard_kept_until = greatest(v_limiter.guard_kept_until,
                   v_now + make_interval(secs => v_limiter.window_s + 2 * greatest(p_guard_s, v_before_s) + 1));
        v_limiter.guard_s := p_guard_s;
    end if;
    insert into llmqueue.worker (worker, name, version, models, lease_s, started_at, heartbeat_at, beating_since)
    values (p_worker, p_name, p_version, p_models, p_lease_s, v_now, v_now, v_now)
    on conflict (worker) do update set heartbeat_at = v_now, beating_since = v_now;
    return v_limiter.guard_s;
end
$$;
comment on function llmqueue.register is
    'Makes a worker known and agrees on the guard. For workers.';
