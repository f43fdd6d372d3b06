-- Calls granted and tokens charged per configured model and minute of the last hour, without refunded calls and with
-- usage reconciled. From ledger_minute, and what is not in there yet: closed cells, and the grants of the open one.
-- Rows of a ledger that was filled after a clock step stand for no call.
create view llmqueue.throughput as
select c.model,
       to_timestamp(charged.minute * 60) as minute,
       sum(charged.calls)::bigint as calls,
       sum(charged.tokens)::bigint as tokens,
       sum(charged.output_tokens)::bigint as output_tokens
  from llmqueue.model_config c
 cross join (select floor(extract(epoch from llmqueue_internal.clock()) / 60)::bigint - 59 as minute offset 0) since
 cross join lateral (
       select m.minute, m.calls, m.tokens, m.output_tokens
         from llmqueue.ledger_minute m
        where m.model = c.model and m.minute >= since.minute
          and m.calls < 1000000000 and m.tokens < 1000000000000000   -- not of a filled ledger
       union all
       select l.cell / 240, l.calls, l.tokens, l.output_tokens
         from llmqueue.ledger_cell l
        where l.model = c.model and l.cell >= since.minute * 240
          and l.calls < 1000000000 and l.tokens < 1000000000000000   -- not of a filled ledger
       union all
       select g.cell / 240, g.calls, g.tokens, g.output_tokens
         from llmqueue.ledger_grant g
        where g.model = c.model and g.cell >= since.minute * 240
          and g.cell = (select last.cell from llmqueue.ledger_grant last
                         where last.model = c.model order by last.cell desc, last.grant_no desc limit 1)) charged
 group by c.model, charged.minute;
comment on view llmqueue.throughput is 'Calls granted and tokens charged per model and minute of the last hour.';
