-- The first thing `init` creates, before it touches the user's table: an interrupted init is recognised by it.
create schema if not exists llmqueue;
-- `drop schema llmqueue cascade` may have left this one: it holds functions and types of ours, nothing else.
drop schema if exists llmqueue_internal cascade;
create schema llmqueue_internal;

-- One row: which table is adopted, and how its names, types and words map to ours.
create table if not exists llmqueue.mapping (
    only_row boolean primary key default true check (only_row),
    table_schema text not null,
    table_name text not null,
    columns jsonb not null,
    words jsonb not null,
    own_status boolean not null,
    owner_status_column text,
    queued_value text,
    done_value text,
    key_type text not null,
    prompt_type text not null,
    answer_type text not null,
    status_type text not null,
    owner_status_type text,
    prompt_is_json boolean not null,
    answer_is_json boolean not null,
    -- where the owner's triggers look for names when a worker writes the table, as the first init's session had it;
    -- to change it: update llmqueue.mapping, then run init again
    search_path text[],
    adopted_at timestamptz not null default now(),
    is_complete boolean not null default false
);
comment on table llmqueue.mapping is
    'How the columns and words of the tasks table map to llmqueue.task. Written by `llmqueue init`; do not edit.';

create table if not exists llmqueue.schema_version (
    version integer primary key,
    name text not null,
    applied_at timestamptz not null default now()
);
comment on table llmqueue.schema_version is 'Migrations that have been applied.';

-- The functions, views, triggers and indexes that `init` writes: source_hash is of the text, installed_hash of what the
-- catalog made of it, so that `init` notices another release as well as an edit by hand.
create table if not exists llmqueue.applied (
    part text primary key,
    source_hash text not null,
    installed_hash text,
    applied_at timestamptz not null default now()
);
comment on table llmqueue.applied is 'Parts of the schema that `llmqueue init` generates or re-applies.';
