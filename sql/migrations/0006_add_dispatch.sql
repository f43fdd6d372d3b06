-- How the tasks of a model are sent: each in a call of its own, or several in one.

alter table llmqueue.model_config
    add column dispatch text not null default 'auto',
    add column max_batch integer not null default 20,
    add constraint dispatch_is_known check (dispatch in ('auto', 'single', 'batch')),
    add constraint max_batch_is_positive check (max_batch between 1 and 1000);
comment on column llmqueue.model_config.dispatch is
    'single: a call per task; batch: several in one call; auto: batches while a worker has no time for single calls';
comment on column llmqueue.model_config.max_batch is 'the most tasks in one call, 1 to 1000';

alter type llmqueue.claimed
    add attribute dispatch text,
    add attribute max_batch integer;
