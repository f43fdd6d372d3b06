-- Tokens beside calls, daily limits, short windows, named pools and weights, models that are closed for a while.

alter table llmqueue.model_config
    add column tpm bigint,
    add column output_tpm bigint,
    add column token_mode text not null default 'sum',
    add column max_output integer,
    add column rpd integer,
    add column tpd bigint,
    add column quota_timezone text not null default 'UTC',
    add column burst_windows jsonb,
    add column weight double precision not null default 1,
    add column hot_share double precision not null default 0.1,
    add constraint tpm_is_not_negative check (tpm >= 0),
    add constraint output_tpm_is_not_negative check (output_tpm >= 0),
    add constraint token_mode_is_known check (token_mode in ('input', 'sum', 'max', 'split', 'actual')),
    add constraint output_tpm_is_of_split check (output_tpm is null or token_mode = 'split'),
    add constraint max_output_is_positive check (max_output > 0),
    add constraint rpd_is_not_negative check (rpd >= 0),
    add constraint tpd_is_not_negative check (tpd >= 0),
    add constraint quota_timezone_is_known check (timestamptz '2000-01-01 00:00:00+00' at time zone quota_timezone is not null),
    add constraint burst_windows_are_shares_by_seconds check (
        jsonb_typeof(burst_windows) = 'object' and not jsonb_path_exists(burst_windows,
            '$.keyvalue() ? (!(@.key like_regex "^[0-5]?[0-9]([.][0-9]{1,3})?$") || !(@.value.type() == "number")
                             || @.value <= 0 || @.value > 1 || @.key like_regex "^0*([.]0*)?$")')),
    add constraint weight_is_not_negative check (weight = 0 or weight between 0.001 and 1000000),
    add constraint hot_share_is_a_share check (hot_share >= 0 and hot_share <= 0.9);
comment on column llmqueue.model_config.tpm is 'tokens charged per sliding 60 s; with token_mode split, of the input; null: no limit';
comment on column llmqueue.model_config.output_tpm is 'with token_mode split: output tokens per sliding 60 s; null: no limit';
comment on column llmqueue.model_config.token_mode is 'what counts against tpm: input | sum (input + max_output) | max (the larger of them) | split | actual';
comment on column llmqueue.model_config.max_output is 'output tokens of a call whose params name no maximum; null: a quarter of tpm, at most 1024';
comment on column llmqueue.model_config.rpd is 'calls per day; null: no limit';
comment on column llmqueue.model_config.tpd is 'tokens charged per day; null: no limit';
comment on column llmqueue.model_config.quota_timezone is 'where the day of rpd and tpd begins at midnight, such as America/Los_Angeles';
comment on column llmqueue.model_config.burst_windows is 'shorter windows: {"10": 0.1667} is at most a sixth of rpm in any 10 s';
comment on column llmqueue.model_config.weight is 'share of the default pool''s tasks; 0 keeps the model out of it';
comment on column llmqueue.model_config.hot_share is 'part of the calls and slots kept for tasks of priority 100 and more';

create table llmqueue.pool_member (
    pool text not null,
    model text not null,
    weight double precision not null default 1,
    primary key (pool, model),
    constraint pool_has_a_name check (pool <> ''),
    constraint weight_is_positive check (weight between 0.001 and 1000000)
);
create index pool_member_of_model on llmqueue.pool_member (model, pool);
comment on table llmqueue.pool_member is 'Named pools: a task whose model is a pool''s name goes to whichever member has room.';

-- What the machine has learned about a model; apart from model_config, so that a person's UPDATE never meets a hot row.
-- Written when a model closes, probes or opens, and by calibrate(); never by a claim that goes its usual way.
create table llmqueue.model_state (
    model text primary key,
    -- closed: nothing is granted before closed_until, then one probe; open again when the probe has ended well
    closed_at timestamptz,
    closed_until timestamptz,
    closed_because text,
    closings integer not null default 0,      -- in a row; the pause without Retry-After doubles with each
    probe_fence bigint,
    reopened_at timestamptz,
    -- learned ceilings: what was left after the last cut; they rise again by themselves (see ceiling functions)
    rpm_ceiling double precision,
    rpm_cut_at timestamptz,
    concurrency_ceiling double precision,
    concurrency_cut_at timestamptz,
    -- calibration of estimates: actual tokens / estimate, in SQL by bytes and in the worker by kinds of characters
    input_overhead double precision,          -- tokens that every prompt has besides its own, such as a system prompt
    bytes_ratio_mean double precision,
    bytes_ratio_p95 double precision,
    kinds_ratio_mean double precision,
    kinds_ratio_p95 double precision,
    output_mean double precision,
    output_sd double precision,
    samples integer not null default 0,
    calibrated_at timestamptz,
    constraint closed_since_and_until check ((closed_at is null) = (closed_until is null))
);

-- The ledger counts tokens too, and hot calls by themselves. Its sums are read from the index alone.
alter table llmqueue.ledger_grant
    add column hot_calls integer not null default 0,
    add column tokens bigint not null default 0,
    add column output_tokens bigint not null default 0,
    add column token_level double precision not null default 0,   -- of the bucket of tokens, in tokens
    add column turn integer not null default 0,                   -- grants since the last one that went to the oldest task
    add column hot_at timestamptz;                                -- when the last hot task was granted
alter table llmqueue.ledger_cell
    add column hot_calls integer not null default 0,
    add column tokens bigint not null default 0,
    add column output_tokens bigint not null default 0,
    drop constraint ledger_cell_pkey,
    add primary key (model, cell, entry_no) include (calls, hot_calls, tokens, output_tokens);
-- Cells that no window reaches any more, by minute: for the day's limits and the views.
create table llmqueue.ledger_minute (
    model text not null,
    minute bigint not null,   -- since 1970
    calls bigint not null,
    tokens bigint not null,
    output_tokens bigint not null,
    primary key (model, minute) include (calls, tokens, output_tokens)
);

-- The limits that an attempt was judged by, and what it was charged.
alter table llmqueue.attempt
    add column lane text,                     -- where it was taken from: the model's name, a pool's, '' for the default pool
    add column is_hot boolean not null default false,
    add column is_probe boolean not null default false,
    add column ceiling_rpm integer,           -- the learned ceiling, where one was below rpm
    add column tpm bigint,
    add column output_tpm bigint,
    add column token_mode text,
    add column bytes_estimate integer,        -- of input tokens, before calibration
    add column kinds_estimate integer,        -- the worker's
    add column input_charge integer,
    add column output_charge integer,
    add column tokens bigint,                 -- charged against tpm in `cell`; null: the model has no limit on tokens
    add column output_tokens_charged bigint,  -- charged against output_tpm
    add column top_up_cell bigint,
    add column top_up_tokens bigint,
    add column tokens_final bigint,           -- what the charge became when the usage was known
    add column output_tokens_final bigint;
drop index llmqueue.attempt_open;
create index attempt_open on llmqueue.attempt (model, worker) include (is_hot) where ended_at is null;

drop function if exists llmqueue.claim(uuid, text[], integer, text[], integer, timestamptz);
drop function if exists llmqueue.lease(uuid, text, integer, bigint, integer, timestamptz);
drop function if exists llmqueue.lease_rank(uuid, text, bigint, integer, bigint, integer, timestamptz);
drop function if exists llmqueue.lease_each(uuid, text, llmqueue.task_id[], bigint, integer, timestamptz);
drop function if exists llmqueue.lease_rows(uuid, text, llmqueue.task_id[], bigint, integer, timestamptz);
drop function if exists llmqueue.allowance(text, integer, integer, timestamptz);
drop function if exists llmqueue.charge(text, integer, bigint, double precision, timestamptz, bigint, bigint);
drop function if exists llmqueue.room(text, integer);
drop function if exists llmqueue.has_ready(text);

alter type llmqueue.leased
    add attribute tokens bigint,              -- charged; null: the model has no limit on tokens
    add attribute input_charge integer,
    add attribute is_hot boolean,
    add attribute lane text,
    add attribute output_tokens bigint;
alter type llmqueue.claimed
    add attribute kinds_ratio double precision,   -- what the worker's own estimate is multiplied by; null: no limit on tokens
    add attribute turns jsonb;                    -- to be given to the next claim; on the last row only

-- What a model may be given at one moment: allowance() makes it, lease() takes from it, charge() writes what was taken.
create type llmqueue.budget as (
    model text,
    rpm integer,                    -- with the learned ceiling
    configured llmqueue.model_config,
    span_s double precision,        -- window + guard
    window_s double precision,
    calls integer,                  -- leave for this many calls of any kind
    hot_calls integer,              -- and for this many if they are hot; never fewer
    tokens bigint,                  -- tokens for tasks of any kind; null: no limit
    hot_tokens bigint,
    rpm_free bigint,                -- what the window has left, the hot reserve and the pace aside
    tpm_free bigint,
    output_free bigint,
    day_calls bigint,               -- what the day has left
    day_tokens bigint,
    level double precision,
    capacity double precision,      -- of the bucket of calls: a second's worth, at least 2
    pace double precision,          -- calls per second by which the bucket is refilled now
    token_level double precision,
    granted_at timestamptz,
    cell bigint,
    turn integer,
    hot_at timestamptz,
    reserve integer,
    token_reserve bigint,
    open_cell bigint,
    open_calls bigint,
    open_hot_calls bigint,
    open_tokens bigint,
    open_output_tokens bigint,
    bytes_ratio double precision,   -- calibration of the estimate of input tokens
    input_overhead double precision,
    output_expected double precision
);
-- A ready task that was locked, with what it would be charged.
create type llmqueue.candidate as (
    task_id llmqueue.task_id,
    lane text,
    is_hot boolean,
    bytes_estimate integer,
    input_charge integer,
    output_charge integer,
    tokens bigint,
    output_tokens bigint
);
-- What lease() works on: which lanes, how many of each, what was taken, and why it stopped.
create type llmqueue.taking as (
    lanes text[],
    most integer[],                 -- tasks that each lane may still give
    users jsonb,                    -- lane -> the user who was served last
    slots integer,
    hot_slots integer,
    rows llmqueue.leased[],
    calls integer,
    hot_calls integer,
    aged integer,
    tokens bigint,
    output_tokens bigint,
    is_cut boolean,                 -- stopped early, there is more to go through
    is_blocked boolean,             -- the next in order does not fit now and keeps its place
    next_tokens bigint,             -- what it needs
    next_output_tokens bigint,
    next_is_hot boolean
);
-- A ready task that was locked for a claim, in its order. Sizes are read only where tokens are limited.
create type llmqueue.picked as (
    task_id llmqueue.task_id,
    lane text,
    user_key text,
    is_hot boolean,
    is_expired boolean,
    bytes integer,
    max_output integer,
    last_fence bigint
);
drop function if exists llmqueue.expire(llmqueue.task_id[], timestamptz);
-- What claim_model() gives to claim().
create type llmqueue.granted as (
    verdict llmqueue.claimed,
    tasks llmqueue.leased[],
    users jsonb
);
