-- Open attempts are counted from the lowest fence that may be open (decision 47).

alter table llmqueue.ledger_grant
    add column open_from bigint;    -- no attempt of the model with a lower fence was open; null: not known
alter type llmqueue.budget
    add attribute open_from bigint;

-- What replaces them takes the same arguments first: a claim may be under way, and goes on in the old text.
drop function if exists llmqueue.room(text, integer, double precision);
drop function if exists llmqueue.expected_tokens(llmqueue.model_config);

-- Of a log that is in use `init` builds the index beside the workers, before this, and drops the old one afterwards.
do $$
begin
    if not exists (select from llmqueue.attempt) then
        create index if not exists attempt_running on llmqueue.attempt (model, fence) include (is_hot, worker) where ended_at is null;
        drop index if exists llmqueue.attempt_open;
    end if;
end
$$;
