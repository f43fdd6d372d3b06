-- What it does: finds the highest priority from p_most down to p_least at which a lane has a ready task.
-- Returns: the priority, or null.
-- Locks: none.
-- Why: one step of a loose index scan. Priorities with cursors are read by next_user(), which passes over dead entries.
create or replace function llmqueue_internal.next_priority(
    p_lane text, p_most bigint, p_cursors llmqueue_internal.resume_cursor[],
    p_least bigint default -9223372036854775808)
returns bigint language plpgsql stable as $$
declare
    v_most bigint := p_most;
    v_at_cursor bigint;
    v_rank bigint;
begin
    loop
        if p_cursors is not null then
            v_at_cursor := (select max(m.rank) from unnest(p_cursors) m
                            where m.lane = p_lane and m.rank between p_least and v_most);
        end if;
        if v_at_cursor is null then
            return (select t.rank::bigint from llmqueue.task t
                     where t.is_ready and t.lane = p_lane and t.rank <= v_most and t.rank >= p_least
                     order by t.rank desc limit 1);
        end if;
        v_rank := (select t.rank::bigint from llmqueue.task t
                    where t.is_ready and t.lane = p_lane and t.rank <= v_most and t.rank > v_at_cursor
                    order by t.rank desc limit 1);
        if v_rank is not null then
            return v_rank;
        elsif (select u.user_key is not null
               from llmqueue_internal.next_user(p_lane, v_at_cursor, null, p_cursors) u) then
            return v_at_cursor;
        end if;
        exit when v_at_cursor = p_least;
        v_most := v_at_cursor - 1;
    end loop;
    return null;
end
$$;
