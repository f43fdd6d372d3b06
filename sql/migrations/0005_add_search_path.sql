-- The schemas in which the owner's triggers look for names when a worker's role writes the tasks table (owners_path()), as the
-- session of the first init had them. To change them: update llmqueue.mapping, then run init again.
alter table llmqueue.mapping add column search_path text[];
