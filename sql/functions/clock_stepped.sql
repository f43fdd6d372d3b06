-- What it does: closes all models for one window after a worker saw the database's clock step forward (I7).
-- Returns: nothing.
-- Locks: every model's advisory lock, in the order of their names.
-- Why: a clock that jumps ahead lets grants of the last minute leave the ledger too early.
create or replace function llmqueue.clock_stepped(p_now timestamptz default null)
returns void language plpgsql volatile as $$
declare
    v_model text;
begin
    for v_model in select c.model from llmqueue.model_config c order by c.model loop
        perform llmqueue.fill_ledger(v_model, p_now);
    end loop;
end
$$;
