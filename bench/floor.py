"""The least time that Postgres itself needs to claim rows and mark them as done: pgbench, without a queue."""

from __future__ import annotations

import resource
import subprocess
import tempfile

import psycopg

from bench.drain import Drained, spreads
from bench.parts import number, prose, table
from bench.scale import PGBENCH
from bench.world import server_cpu_s

BATCH = 100
# Two statements, each in its own transaction, as in every queue: other sessions must see claimed rows.
SCRIPT = f"""
with next as (select id from job where status = 'ready' order by id limit {BATCH} for update skip locked)
update job set status = 'running', owner = :client_id from next where job.id = next.id;
update job set status = 'done' where status = 'running' and owner = :client_id;
"""


def floor(dsn: str, quick: bool) -> str:
    """Measures with one client and with eight."""
    rounds, clients = (1 if quick else 3), (1, 8)
    results: dict[int, list[Drained]] = {count: [] for count in clients}
    for _ in range(rounds):
        for count in clients:
            results[count].append(_claim_and_complete(dsn, count, 20_000 if quick else 200_000))
    rows = [(count, *spreads(found, cpu_digits=1)) for count, found in results.items()]
    head = ("clients", "rows/s", "pgbench CPU, µs per row", "server CPU, µs per row")
    about = f"""A table of an id and a status, and an index of the ready rows: claim {BATCH} with SKIP LOCKED, then mark
        them as done. There are no limits, attempts, answers or fences. Nothing that drains a table can be faster."""
    return f"## What Postgres itself needs\n\n{prose(about)}\n\n{table(head, rows)}"


def _claim_and_complete(dsn: str, clients: int, rows: int) -> Drained:
    with psycopg.connect(dsn, autocommit=True) as conn, tempfile.NamedTemporaryFile("w", suffix=".sql") as script:
        conn.execute("drop table if exists job")
        conn.execute(
            "create table job (id bigint generated always as identity primary key, status text not null, owner integer)"
        )
        conn.execute("insert into job (status) select 'ready' from generate_series(1, %s)", (rows,))
        conn.execute("create index on job (id) where status = 'ready'")
        conn.execute("create index on job (owner) where status = 'running'")
        conn.execute("vacuum analyze job")
        conn.execute("checkpoint")
        script.write(SCRIPT)
        script.flush()
        times = str(rows // BATCH // clients)
        command = [str(PGBENCH), "-n", "-M", "prepared", "-c", str(clients), "-j", "2", "-t", times, "-f", script.name]
        before = number(conn, "select extract(epoch from clock_timestamp())"), server_cpu_s(conn)
        usage = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([*command, dsn], check=True, capture_output=True)
        seconds = number(conn, "select extract(epoch from clock_timestamp())") - before[0]
        server_s = server_cpu_s(conn) - before[1]
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        client_s = after.ru_utime + after.ru_stime - usage.ru_utime - usage.ru_stime
        done = number(conn, "select count(*) from job where status = 'done'")
    return Drained(done / seconds, client_s / done * 1e6, server_s / done * 1e6)
