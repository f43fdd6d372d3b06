-- What a worker has to say about the backend, and what becomes of calls whose worker died.

alter table llmqueue.worker
    add column backend_trouble text,           -- what keeps it from calling the backend; null: nothing
    add column backend_troubled_at timestamptz,
    add constraint trouble_since_when check ((backend_trouble is null) = (backend_troubled_at is null));

alter table llmqueue.model_config
    add column on_crash text not null default 'retry',
    add constraint on_crash_is_known check (on_crash in ('retry', 'park'));
comment on column llmqueue.model_config.on_crash is
    'what becomes of a call that may have been sent when its worker dies: retry, or park (a dead letter, outcome_unknown)';
