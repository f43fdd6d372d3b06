-- The machine's own tables. The domain llmqueue.task_id exists already: `init` creates it from the key of the user's
-- table. Nothing here points at the user's rows with a foreign key (I18): DELETE and TRUNCATE stay theirs.

-- ====================================================================================================================
-- What people edit
-- ====================================================================================================================

create table llmqueue.model_config (
    model text primary key,
    rpm integer not null,
    tpm bigint,
    output_tpm bigint,
    token_mode text not null default 'sum',
    max_output integer,
    rpd integer,
    tpd bigint,
    quota_timezone text not null default 'UTC',
    burst_windows jsonb,
    max_concurrency integer,
    weight double precision not null default 1,
    hot_share double precision not null default 0.1,
    enabled boolean not null default true,
    timeout interval not null default interval '10 minutes',
    on_crash text not null default 'retry',
    dispatch text not null default 'auto',
    max_batch integer not null default 20,
    constraint model_has_a_name check (model <> ''),
    constraint rpm_is_not_negative check (rpm >= 0),
    constraint tpm_is_not_negative check (tpm >= 0),
    constraint output_tpm_is_not_negative check (output_tpm >= 0),
    constraint token_mode_is_known check (token_mode in ('input', 'sum', 'max', 'split', 'actual')),
    constraint output_tpm_is_of_split check (output_tpm is null or token_mode = 'split'),
    constraint max_output_is_positive check (max_output > 0),
    constraint rpd_is_not_negative check (rpd >= 0),
    constraint tpd_is_not_negative check (tpd >= 0),
    constraint quota_timezone_is_known check (
        timestamptz '2000-01-01 00:00:00+00' at time zone quota_timezone is not null),
    constraint burst_windows_are_shares_by_seconds check (
        jsonb_typeof(burst_windows) = 'object' and not jsonb_path_exists(burst_windows,
            '$.keyvalue() ? (!(@.key like_regex "^[0-5]?[0-9]([.][0-9]{1,3})?$") || !(@.value.type() == "number")
                             || @.value <= 0 || @.value > 1 || @.key like_regex "^0*([.]0*)?$")')),
    constraint max_concurrency_is_not_negative check (max_concurrency >= 0),
    constraint weight_is_not_negative check (weight = 0 or weight between 0.001 and 1000000),
    constraint hot_share_is_a_share check (hot_share >= 0 and hot_share <= 0.9),
    constraint timeout_is_positive check (timeout > interval '0'),
    constraint on_crash_is_known check (on_crash in ('retry', 'park')),
    constraint dispatch_is_known check (dispatch in ('auto', 'single', 'batch')),
    constraint max_batch_is_positive check (max_batch between 1 and 1000)
);
comment on table llmqueue.model_config is
    'Limits of each model. An UPDATE holds from the first grant after its COMMIT.';
comment on column llmqueue.model_config.rpm is 'calls per sliding 60 s over all workers; 0 pauses the model';
comment on column llmqueue.model_config.tpm is
    'tokens charged per sliding 60 s; with token_mode split, of the input; null: no limit';
comment on column llmqueue.model_config.output_tpm is
    'with token_mode split: output tokens per sliding 60 s; null: no limit';
comment on column llmqueue.model_config.token_mode is
    'what counts against tpm: input | sum (input + max_output) | max (the larger of them) | split | actual';
comment on column llmqueue.model_config.max_output is
    'output tokens of a call whose params name no maximum; null: a quarter of tpm, at most 1024';
comment on column llmqueue.model_config.rpd is 'calls per day; null: no limit';
comment on column llmqueue.model_config.tpd is 'tokens charged per day; null: no limit';
comment on column llmqueue.model_config.quota_timezone is
    'where the day of rpd and tpd begins at midnight, such as America/Los_Angeles';
comment on column llmqueue.model_config.burst_windows is
    'shorter windows: {"10": 0.1667} is at most a sixth of rpm in any 10 s';
comment on column llmqueue.model_config.max_concurrency is 'calls in flight over all workers; null: no limit';
comment on column llmqueue.model_config.weight is
    'share of the default pool''s tasks; 0 keeps the model out of it';
comment on column llmqueue.model_config.hot_share is
    'part of the calls and slots kept for tasks of priority 100 and more';
comment on column llmqueue.model_config.timeout is 'longest time one attempt may take';
comment on column llmqueue.model_config.on_crash is
    'what becomes of a call that may have been sent when its worker dies: retry, or park (a dead letter,'
    ' outcome_unknown)';
comment on column llmqueue.model_config.dispatch is
    'single: a call per task; batch: several in one call; auto: batches while a worker has no time for single calls';
comment on column llmqueue.model_config.max_batch is 'the most tasks in one call, 1 to 1000';

create table llmqueue.pool_member (
    pool text not null,
    model text not null,
    weight double precision not null default 1,
    primary key (pool, model),
    constraint pool_has_a_name check (pool <> ''),
    constraint weight_is_positive check (weight between 0.001 and 1000000)
);
create index pool_member_of_model on llmqueue.pool_member (model, pool);
comment on table llmqueue.pool_member is
    'Named pools: a task whose model is a pool''s name goes to whichever member has room.';

-- ====================================================================================================================
-- The limiter
-- ====================================================================================================================

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

-- The ledger. Insert-only, because a row that is updated for every grant costs 50 times as much to read once somebody
-- holds a transaction open (I2). ledger_grant has a row per grant and is summed for the current cell only.
create table llmqueue.ledger_grant (
    model text not null,
    cell bigint not null,
    grant_no bigint generated always as identity,
    calls integer not null,
    hot_calls integer not null default 0,
    tokens bigint not null default 0,
    output_tokens bigint not null default 0,
    level double precision not null,                     -- of the token bucket of calls, after the grant
    token_level double precision not null default 0,     -- of the token bucket of tokens, in tokens
    granted_at timestamptz not null,
    turn integer not null default 0,                     -- grants since the last one that went to the oldest task
    hot_at timestamptz,                                  -- when the last hot task was granted
    open_from bigint,                                    -- no open attempt has a lower fence; null: not known
    primary key (model, cell, grant_no)
);
-- A row per closed cell, and a negative row per refund with the number of the cell that was charged. Its sums are read
-- from the index alone.
create table llmqueue.ledger_cell (
    model text not null,
    cell bigint not null,
    entry_no bigint generated always as identity,
    calls integer not null,
    hot_calls integer not null default 0,
    tokens bigint not null default 0,
    output_tokens bigint not null default 0,
    primary key (model, cell, entry_no) include (calls, hot_calls, tokens, output_tokens)
);
-- Cells that no window reaches any more, by minute: for the day's limits and the views.
create table llmqueue.ledger_minute (
    model text not null,
    minute bigint not null,   -- since 1970
    calls bigint not null,
    tokens bigint not null,
    output_tokens bigint not null,
    primary key (model, minute) include (calls, tokens, output_tokens)
);

-- What the machine has learned about a model; apart from model_config, so that a person's UPDATE never meets a hot row.
-- Written when a cooldown starts, is probed or ends, and by calibrate(); never by a claim that goes its usual way.
create table llmqueue.model_state (
    model text primary key,
    -- in cooldown: nothing is granted before cooldown_until, then one probe; it ends when the probe has ended well
    cooldown_started_at timestamptz,
    cooldown_until timestamptz,
    cooldown_reason text,
    cooldowns integer not null default 0,     -- in a row; the pause without Retry-After doubles with each
    cooldown_ended_at timestamptz,
    probe_fence bigint,
    -- learned ceilings: what was left after the last cut; they rise again by themselves (effective_rpm)
    rpm_ceiling double precision,
    rpm_cut_at timestamptz,
    concurrency_ceiling double precision,
    concurrency_cut_at timestamptz,
    -- calibration of estimates: actual tokens / estimate, in SQL by bytes and in the worker by classes of characters
    input_overhead double precision,          -- tokens that every prompt has besides its own, such as a system prompt
    bytes_ratio_mean double precision,
    bytes_ratio_p95 double precision,
    char_class_ratio_mean double precision,
    char_class_ratio_p95 double precision,
    output_mean double precision,
    output_sd double precision,
    samples integer not null default 0,
    calibrated_at timestamptz,
    constraint cooldown_has_both_times check ((cooldown_started_at is null) = (cooldown_until is null))
);

-- ====================================================================================================================
-- Workers and attempts
-- ====================================================================================================================

create table llmqueue.worker (
    worker uuid primary key,
    name text not null,
    version text not null,
    models text[],
    lease_s double precision not null check (lease_s > 0),
    started_at timestamptz not null,
    heartbeat_at timestamptz not null,
    -- since when the heartbeats have come without a gap of a lease: only such a worker may sweep (I9)
    beating_since timestamptz not null,
    running integer not null default 0,
    is_draining boolean not null default false,
    backend_trouble text,                     -- what keeps it from calling the backend; null: nothing
    backend_troubled_at timestamptz,
    constraint trouble_since_when check ((backend_trouble is null) = (backend_troubled_at is null))
);

-- Workers that wait for work. The insert trigger of the tasks table notifies only while there is one (I17).
create table llmqueue.idle_worker (
    worker uuid primary key,
    idle_at timestamptz not null
);

-- Never the retry counter: a promoted or released task would bring an old number back (I8).
create sequence llmqueue.fence_seq as bigint cache 1;

-- One row per execution under one claim, kept for LLMQUEUE_KEEP_ATTEMPTS: what it was judged by, what it was charged,
-- and how it ended.
create table llmqueue.attempt (
    fence bigint primary key,
    task_id llmqueue.task_id not null,
    model text not null,
    worker uuid not null,
    attempt_no integer not null,
    lane text,                                -- where it was taken from: a model, a pool, '' for the default pool
    is_hot boolean not null default false,
    is_probe boolean not null default false,
    granted_at timestamptz not null,
    cell bigint not null,
    rpm integer not null,
    ceiling_rpm integer,                      -- the learned ceiling, where one was below rpm
    tpm bigint,
    output_tpm bigint,
    token_mode text,
    bytes_estimate integer,                   -- of input tokens, before calibration
    char_class_estimate integer,              -- the worker's
    input_charge integer,
    output_charge integer,
    tokens bigint,                            -- charged against tpm in `cell`; null: the model has no limit on tokens
    output_tokens_charged bigint,             -- charged against output_tpm
    top_up_cell bigint,
    top_up_tokens bigint,
    tokens_final bigint,                      -- what the charge became when the usage was known
    output_tokens_final bigint,
    sent_at timestamptz,
    ended_at timestamptz,
    outcome text check (outcome in ('completed', 'retried', 'refused', 'buried', 'released', 'lost', 'late',
                                    'quarantined')),
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
create index attempt_running on llmqueue.attempt (model, fence) include (is_hot, worker) where ended_at is null;

-- Tasks whose row could not be updated (an owner's trigger, a varchar too short): kept out of the way and shown (I12).
create table llmqueue.quarantine (
    task_id llmqueue.task_id primary key,
    step text not null,
    reason text not null,
    quarantined_at timestamptz not null default now()
);

-- ====================================================================================================================
-- Failover
-- ====================================================================================================================

-- After a failover or a restore the ledger and the fences may be behind what was granted. Insert-only; the row with the
-- highest number holds. The first one says on which server this schema was installed.
create table llmqueue.epoch (
    epoch_no integer primary key,
    because text not null check (because in ('installed', 'system', 'timeline', 'fence')),
    system_identifier bigint not null,
    timeline text not null,               -- as in the names of WAL files: eight hexadecimal digits
    fence_floor bigint not null,          -- fences of this epoch are higher; lower ones prove nothing any more
    began_at timestamptz,                 -- null: the first
    quiet_until timestamptz               -- nothing is granted before: every ledger was filled
);
comment on table llmqueue.epoch is
    'Times between failovers and restores that may have lost state; each but the first began with a quiet minute.';
insert into llmqueue.epoch (epoch_no, because, system_identifier, timeline, fence_floor)
select 1, 'installed', c.system_identifier, left(pg_walfile_name(pg_current_wal_lsn()), 8), 0
  from pg_control_system() c;

-- ====================================================================================================================
-- Types that the functions of llmqueue_internal pass to each other
-- ====================================================================================================================

-- A claim takes a task through three of them: pick_*() locks it (locked_task), admit() charges it (charged_task), and
-- mark_running() starts it (running_task).

-- A ready task that was locked for a claim, in its order. Sizes are read only where tokens are limited.
create type llmqueue_internal.locked_task as (
    task_id llmqueue.task_id,
    lane text,
    user_key text,
    is_hot boolean,
    is_expired boolean,
    bytes integer,
    max_output integer,
    last_fence bigint
);
-- A locked task with its charge. Sizes and charges are null where tokens are not limited.
create type llmqueue_internal.charged_task as (
    task_id llmqueue.task_id,
    lane text,
    is_hot boolean,
    bytes_estimate integer,         -- of input tokens, before calibration
    input_charge integer,
    output_charge integer,
    tokens bigint,                  -- against tpm
    output_tokens bigint            -- against output_tpm
);
-- A task that runs: what claim() gives to the worker.
create type llmqueue_internal.running_task as (
    task_id llmqueue.task_id,
    fence bigint,
    attempt_no integer,
    max_attempts integer,
    restarts integer,
    prompt text,
    params text,
    tokens bigint,                  -- charged; null: the model has no limit on tokens
    input_charge integer,
    is_hot boolean,
    lane text,
    output_tokens bigint
);
-- A row of claim(), of one of two kinds. A grant has a task; its reason means nothing. A refusal has none, and says why
-- the model was given no more, and when to come back.
create type llmqueue_internal.claim_row as (
    model text,
    task llmqueue_internal.running_task,
    reason text,                         -- null: the claim took all it wanted
    retry_in_s double precision,
    -- of both kinds, where the model's lock was got and its limits were read
    waited_s double precision,
    clock_at timestamptz,
    timeout_s double precision,
    guard_s double precision,
    char_class_ratio double precision,   -- what the worker's estimate is multiplied by; null: no limit on tokens
    claim_state jsonb,                   -- to be given to the next claim; on the first refusal only
    dispatch text,
    max_batch integer
);
-- What a model may be given at one moment. One value in groups, though several functions use parts of it: parted into
-- nested types it would be copied at each step, and a claim of one task is mostly such steps (decision 49).
create type llmqueue_internal.budget as (
    -- the model and the moment
    model text,
    configured llmqueue.model_config,
    rpm integer,                    -- with the learned ceiling
    window_s double precision,
    span_s double precision,        -- window + guard
    granted_at timestamptz,
    cell bigint,                    -- that of granted_at
    -- headroom: what may be granted; admit() and calls_left() look at it
    calls integer,                  -- leave for this many calls of any kind
    hot_calls integer,              -- and for this many if they are hot; never fewer
    tokens bigint,                  -- tokens for tasks of any kind; null: no limit
    hot_tokens bigint,
    output_free bigint,             -- output tokens; null: no limit
    day_calls bigint,               -- what the day has left; null: no limit
    day_tokens bigint,
    -- what the headroom comes from; when_free() turns it into a time
    rpm_free bigint,                -- what the window has left, the hot reserve and the pace aside
    tpm_free bigint,
    reserve integer,                -- calls and tokens kept for hot tasks
    token_reserve bigint,
    -- token buckets; charge() writes their levels
    capacity double precision,      -- of the bucket of calls: a second's worth, at least 2
    pace double precision,          -- calls per second by which the bucket is refilled now
    level double precision,
    token_level double precision,
    -- ledger position: the last grant and the open cell; charge() closes it and goes on from there
    turn integer,                   -- grants since the last one that went to the oldest task
    hot_at timestamptz,             -- when the last hot task was granted
    open_from bigint,               -- no open attempt has a lower fence; null: not known
    open_cell bigint,
    open_calls bigint,
    open_hot_calls bigint,
    open_tokens bigint,
    open_output_tokens bigint,
    -- calibration: estimate_charge() multiplies by it; null: the model has no limit on tokens
    bytes_ratio double precision,
    input_overhead double precision,
    output_expected double precision
);
-- Where reading of the ready tasks begins while the server cannot remove dead entries (decision 46).
create type llmqueue_internal.resume_cursor as (
    lane text,
    rank bigint,                    -- null: a cursor in the order of age
    user_key text,                  -- null likewise
    due_at timestamptz,             -- in the order of age waiting_since
    task_id llmqueue.task_id,
    taken integer                   -- tasks locked since the cursor was first set
);
-- What dequeue() works on, and what it returns.
create type llmqueue_internal.batch as (
    -- where tasks may come from, and how many
    lanes text[],
    most integer[],                 -- tasks that each lane may still give
    users jsonb,                    -- 'rank lane' -> the user who was served last
    cursors llmqueue_internal.resume_cursor[],   -- null: none are needed
    slots integer,
    hot_slots integer,
    -- what was taken; charge() writes the sums
    rows llmqueue_internal.running_task[],
    calls integer,
    hot_calls integer,
    aged integer,                   -- tasks taken as the oldest
    tokens bigint,
    output_tokens bigint,
    -- why it stopped; refusal() says it to the worker
    has_more boolean,               -- stopped early, there is more to go through
    is_blocked boolean,             -- the next in order does not fit now and keeps its place
    next_tokens bigint,             -- what it needs
    next_output_tokens bigint,
    next_is_hot boolean
);
-- What claim_model() gives to claim().
create type llmqueue_internal.model_claim as (
    refusal llmqueue_internal.claim_row,
    tasks llmqueue_internal.running_task[],
    users jsonb,
    cursors llmqueue_internal.resume_cursor[]
);
