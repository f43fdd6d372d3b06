-- What it does: says when the day of a time zone began.
-- Returns: the last midnight there.
-- Locks: none.
-- Why: providers reset daily quotas at a midnight of their own. Where summer ends at midnight there are two of them,
--   and the cast takes the later: an hour too late while that is ahead.
create or replace function llmqueue_internal.day_start(p_timezone text, p_now timestamptz)
returns timestamptz language sql stable parallel safe as $$
    select case when day.began > day.now then day.began - interval '1 hour' else day.began end
      from (select now.now, date_trunc('day', now.now at time zone p_timezone) at time zone p_timezone as began
              from (select p_now as now) now) day
$$;
