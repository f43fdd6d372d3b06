-- What it does: takes the advisory lock of a model until the end of the transaction.
-- Returns: false if the lock is taken: at once, or with p_may_wait after 200 ms.
-- Locks: pg_advisory_xact_lock(lock_space, hashtext(model)).
-- Why: with several models in one call no claim waits, so ten locks never hang on one fsync and the order does not
--   matter.
create or replace function llmqueue_internal.lock_model(p_model text, p_may_wait boolean)
returns boolean language plpgsql volatile as $$
declare
    v_lock_timeout constant text := current_setting('lock_timeout');
begin
    if pg_try_advisory_xact_lock(llmqueue_internal.lock_space(), hashtext(p_model)) then
        return true;
    elsif not p_may_wait then
        return false;
    end if;
    begin
        perform set_config('lock_timeout', '200ms', true);
        perform pg_advisory_xact_lock(llmqueue_internal.lock_space(), hashtext(p_model));
    exception when lock_not_available then
        return false;   -- the savepoint's rollback has put lock_timeout back
    end;
    perform set_config('lock_timeout', v_lock_timeout, true);
    return true;
end
$$;
