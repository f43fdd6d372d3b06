-- What it does: says whether all ready tasks that a claim may take are of one lane, one priority (p_rank, the highest) and one user.
-- Returns: true if so: their order is that of their age then.
-- Locks: none.
-- Why: in most tables they are, and the pass for the oldest would take what the one before takes anyway: a sixth of the claim.
create or replace function llmqueue_internal.is_in_order(p_lanes text[], p_rank bigint)
returns boolean language plpgsql stable as $$
declare
    v_user text;
    v_next text;
begin
    if cardinality(p_lanes) > 1 or llmqueue_internal.next_priority(p_lanes[1], p_rank - 1, null) is not null then
        return false;
    end if;
    v_user := (select f.user_key from llmqueue_internal.next_user(p_lanes[1], p_rank, null, null) f);
    v_next := (select n.user_key from llmqueue_internal.next_user(p_lanes[1], p_rank, v_user, null) n);
    return v_user is not null and v_next = v_user;
end
$$;
