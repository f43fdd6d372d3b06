-- What it does: says which lanes a model takes tasks from now: its own, those of its pools, and the default pool's ('').
-- Returns: a fresh taking: the lanes that have a ready task, in random order, and how many each may give.
-- Locks: none.
-- Why: an empty lane should not cost the model's lock. Lanes take turns inside a priority, and the order is drawn anew
--   for each claim, so neither a pool starves the tasks of one model nor they the pool. p_shares bounds what is taken from
--   a pool while other models may take of it too; null: no bound.
create or replace function llmqueue.lanes_of(
    p_model text, p_shares jsonb, p_slots integer, p_hot_slots integer, p_users jsonb,
    p_now timestamptz)
returns llmqueue.taking language plpgsql volatile as $$
declare
    v_taking llmqueue.taking;
begin
    select coalesce(array_agg(x.lane order by x.turn), '{}'), coalesce(array_agg(x.most order by x.turn), '{}')
      into v_taking.lanes, v_taking.most
      from (select served.lane, random() as turn,
                   coalesce((p_shares #>> array[served.lane, 'models', p_model, 'tasks'])::integer, p_slots + p_hot_slots) as most
              from (select p_model as lane
                    union all
                    select m.pool from llmqueue.pool_member m where m.model = p_model and m.pool <> p_model
                    union all
                    select '' from llmqueue.model_config c where c.model = p_model and c.weight > 0) served) x
     where x.most > 0 and llmqueue.has_ready(x.lane, p_slots <= 0, p_now);
    v_taking.users := p_users;
    v_taking.slots := p_slots;
    v_taking.hot_slots := p_hot_slots;
    v_taking.rows := array[]::llmqueue.leased[];
    v_taking.calls := 0;
    v_taking.hot_calls := 0;
    v_taking.aged := 0;
    v_taking.tokens := 0;
    v_taking.output_tokens := 0;
    v_taking.is_blocked := false;
    v_taking.is_cut := false;
    return v_taking;
end
$$;
