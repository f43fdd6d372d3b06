-- What it does: says what is left of a model's day: calls of rpd, or tokens of tpd.
-- Returns: limit − what was charged since midnight in quota_timezone; null without such a limit.
-- Locks: none; the caller holds the model's advisory lock.
-- Why: whole minutes from ledger_minute (1,440 index entries at the most), the rest from the cells that are not there
--   yet; one statement, since prune_ledger() moves them in one. Rows of a ledger that was filled stand for no call.
create or replace function llmqueue_internal.day_headroom(
    p_config llmqueue.model_config, p_what text, p_now timestamptz)
returns bigint language plpgsql stable as $$
declare
    v_limit bigint := case p_what when 'calls' then p_config.rpd else p_config.tpd end;
    v_minute bigint;
    v_used bigint;
begin
    if v_limit is null then
        return null;
    end if;
    v_minute := floor(extract(epoch from llmqueue_internal.day_start(p_config.quota_timezone, p_now)) / 60)::bigint;
    select sum(case p_what when 'calls' then x.calls else x.tokens end)::bigint into v_used
      from (select m.calls, m.tokens + m.output_tokens as tokens
              from llmqueue.ledger_minute m where m.model = p_config.model and m.minute >= v_minute
            union all
            select c.calls, c.tokens + c.output_tokens
              from llmqueue.ledger_cell c
             where c.model = p_config.model and c.cell >= v_minute * 240 and c.calls < llmqueue_internal.ledger_full()
            union all
            select g.calls, g.tokens + g.output_tokens
              from llmqueue.ledger_grant g
             where g.model = p_config.model and g.cell >= v_minute * 240
               and g.cell = (select max(last.cell) from llmqueue.ledger_grant last
                             where last.model = p_config.model)) x;
    return v_limit - coalesce(v_used, 0);
end
$$;
