-- Calls granted per model and minute of the last hour (the ledger keeps no more); refunds are taken off.
create view llmqueue.throughput as
select granted.model, date_trunc('minute', to_timestamp(granted.cell * 0.25)) as minute, sum(granted.calls) as calls
  from (select c.model, c.cell, c.calls from llmqueue.ledger_cell c where c.calls < 1000000000
        union all
        select g.model, g.cell, g.calls
          from llmqueue.model_config m
         cross join lateral (select l.cell from llmqueue.ledger_grant l
                              where l.model = m.model order by l.cell desc, l.grant_no desc limit 1) open
          join llmqueue.ledger_grant g on g.model = m.model and g.cell = open.cell) granted
 group by granted.model, minute;
comment on view llmqueue.throughput is 'Calls granted per model and minute of the last hour.';
