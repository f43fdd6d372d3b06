-- One look at the triggers of the tasks table instead of two or three: update_triggers() replaces them.
drop function if exists llmqueue.has_triggers();
drop function if exists llmqueue.has_row_triggers();
drop function if exists llmqueue.owners_table();
