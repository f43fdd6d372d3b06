-- The machine's own tables. The domain llmqueue.task_id exists already: `init` creates it from the key of the
-- user's table. Nothing here points at the user's rows with a foreign key (I18): DELETE and TRUNCATE stay theirs.

-- What people edit.
create table llmqueue.model_config (
    model text primary key,
    rpm integer not null,
    max_concurrency integer,
    enabled boolean not null default true,
    timeout interval not null default interval '10 minutes',
    constraint model_has_a_name check (model <> ''),
    constraint rpm_is_not_negative check (rpm >= 0),
    constraint max_concurrency_is_not_negative check (max_concurrency >= 0),
    constraint timeout_is_positive check (timeout > interval '0')
);
comment on table llmqueue.model_config is 'Limits of each model. An UPDATE holds from the first grant after its COMMIT.';
comment on column llmqueue.model_config.rpm is 'calls per sliding 60 s over all workers; 0 pauses the model';
comment on column llmqueue.model_config.max_concurrency is 'calls in flight over all workers; null: no limit';
comment on column llmqueue.model_config.timeout is 'longest time one attempt may take';

-- One row: the limiter's constants. window_s is 60 outside tests. guard_s is the time after a grant within which its
-- call may reach the backend; after a change the larger of both values holds for guard_kept_until.
create table llmqueue.limiter (
    only_row boolean primary key default true check (only_row),
    window_s double precision not null default 60 check (window_s > 0),
    guard_s double precision not null default 0.5 check (guard_s between 0 and 10),
    guard_before_s double precision not null default 0.5 check (guard_before_s between 0 and 10),
    guard_kept_until timestamptz not null default '-infinity'
);
insert into llmqueue.limiter default values;

-- The limiter's ledger. Insert-only, because a row that is updated for every grant costs 50 times as much to read
-- once somebody holds a transaction open (design I2). ledger_grant has a row per grant and is summed for the current
-- cell only; ledger_cell has a row per closed cell, and a negative row per refund with the number of the cell that
-- was charged. `level` is the bucket's level after the grant.
create table llmqueue.ledger_grant (
    model text not null,
    cell bigint not null,
    grant_no bigint generated always as identity,
    calls integer not null,
    level double precision not null,
    granted_at timestamptz not null,
    primary key (model, cell, grant_no)
);
create table llmqueue.ledger_cell (
    model text not null,
    cell bigint not null,
    entry_no bigint generated always as identity,
    calls integer not null,
    primary key (model, cell, entry_no) include (calls)
);

create table llmqueue.worker (
    worker uuid primary key,
    name text not null,
    version text not null,
    models text[],
    lease_s double precision not null check (lease_s > 0),
    started_at timestamptz not null,
    heartbeat_at timestamptz not null,
    -- since when the heartbeats have come without a gap of a lease (I9: only such a worker may sweep)
    beating_since timestamptz not null,
    running integer not null default 0,
    is_draining boolean not null default false
);

-- Workers that wait for work. The insert trigger of the tasks table notifies only while there is one (I17).
create table llmqueue.idle_worker (
    worker uuid primary key,
    idle_at timestamptz not null
);

-- Never the retry counter: a promoted or released task would bring an old number back (I8).
create sequence llmqueue.fence_seq as bigint cache 1;

-- One row per execution under one claim, kept for LLMQUEUE_KEEP_ATTEMPTS.
create table llmqueue.attempt (
    fence bigint primary key,
    task_id llmqueue.task_id not null,
    model text not null,
    worker uuid not null,
    attempt_no integer not null,
    granted_at timestamptz not null,
    cell bigint not null,
    rpm integer not null,
    sent_at timestamptz,
    ended_at timestamptz,
    outcome text check (outcome in ('completed', 'retried', 'refused', 'buried', 'released', 'lost', 'late', 'set_aside')),
    error_class text,
    error text,
    latency_s double precision,
    input_tokens integer,
    output_tokens integer,
    -- only an answer that could not be written to its task: paid answers are never thrown away
    answer text,
    constraint ended_with_outcome check ((ended_at is null) = (outcome is null))
);
create index attempt_of_task on llmqueue.attempt (task_id, fence);
create index attempt_open on llmqueue.attempt (model, worker) where ended_at is null;

-- Rows whose UPDATE raised (an owner's trigger, a varchar too short): kept out of the way, shown by `status` (I12).
create table llmqueue.set_aside (
    task_id llmqueue.task_id primary key,
    step text not null,
    reason text not null,
    set_aside_at timestamptz not null default now()
);

-- What lease() gives to claim(), and claim() to the worker. A row of llmqueue.claimed without a task is a verdict.
create type llmqueue.leased as (
    task_id llmqueue.task_id,
    fence bigint,
    attempt_no integer,
    max_attempts integer,
    restarts integer,
    prompt text,
    params text
);
create type llmqueue.claimed as (
    model text,
    task llmqueue.leased,
    reason text,
    retry_in_s double precision,
    waited_s double precision,
    clock_at timestamptz,
    timeout_s double precision,
    guard_s double precision
);
