-- settle() learns at once that all answers of a flush were written, and need not look at their rows again.

-- What replaces it returns a number: a settle may be under way, and goes on in the old text.
drop function if exists llmqueue.settle_verb(text, uuid, jsonb, timestamptz);
