-- The search path under which the owner's triggers run when a worker's role writes the tasks table (owners_path()).
alter table llmqueue.mapping add column search_path text;
