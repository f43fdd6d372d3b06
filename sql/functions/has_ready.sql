-- What it does: looks whether a lane has a ready task that is due, or a hot one, without locking anything.
-- Returns: true or false; hot tasks whose run_at is ahead count.
-- Locks: none.
-- Why: only for a claim of the release before, which may be under way while an upgrade replaces what it calls.
create or replace function llmqueue.has_ready(p_lane text, p_is_hot boolean default false, p_now timestamptz default null)
returns boolean language plpgsql stable as $$
begin
    if p_is_hot then
        return llmqueue.next_rank(p_lane, 9223372036854775807, null, 100) is not null;
    end if;
    return coalesce((select f.waiting_since <= coalesce(p_now, clock_timestamp()) from llmqueue.first_waiting(p_lane, null) f), false);
end
$$;
