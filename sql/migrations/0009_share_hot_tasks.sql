-- Hot tasks are shared out by weight too when they have a claim of their own (decision 25).

-- What replaces it takes the same arguments first: a claim may be under way, and goes on in the old text.
drop function if exists llmqueue.share_out(text[], integer, jsonb, llmqueue.mark[]);
