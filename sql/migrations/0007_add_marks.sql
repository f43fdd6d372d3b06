-- Where reading of the ready tasks begins while the server cannot remove what has gone (decision 46).

create type llmqueue.mark as (
    lane text,
    rank bigint,                    -- null: a mark in the order of age
    user_key text,                  -- null likewise
    due_at timestamptz,             -- in the order of age waiting_since
    task_id llmqueue.task_id,
    taken integer                   -- tasks locked since the mark was first set
);
alter type llmqueue.taking
    add attribute marks llmqueue.mark[];   -- null: none are needed
alter type llmqueue.granted
    add attribute marks llmqueue.mark[];

-- What replaces them takes the same arguments first: a claim may be under way, and goes on in the old text of claim().
drop function if exists llmqueue.claim_model(uuid, text, boolean, jsonb, jsonb, integer, integer, timestamptz);
drop function if exists llmqueue.lanes_of(text, jsonb, integer, integer, jsonb, timestamptz);
drop function if exists llmqueue.share_out(text[], integer, jsonb);
drop function if exists llmqueue.pick_by_rank(text[], integer[], jsonb, bigint, integer, llmqueue.task_id[], boolean, timestamptz);
drop function if exists llmqueue.pick_by_age(text[], integer[], integer, llmqueue.task_id[], boolean, timestamptz);
drop function if exists llmqueue.read_turns(jsonb);
