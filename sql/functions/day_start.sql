-- What it does: says when the day of a time zone began.
-- Returns: the last midnight there.
-- Locks: none.
-- Why: providers reset daily quotas at a midnight of their own.
create or replace function llmqueue.day_start(p_timezone text, p_now timestamptz default null)
returns timestamptz language sql stable parallel safe as $$
    select date_trunc('day', coalesce(p_now, clock_timestamp()) at time zone p_timezone) at time zone p_timezone
$$;
