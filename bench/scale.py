"""Measures how llmqueue scales: inserts into the owner's table, calls in flight, workers, and a trace of arrivals."""

from __future__ import annotations

import csv
import gzip
import os
import statistics
import subprocess
import tempfile
import time
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

import psutil
import psycopg
from psycopg import sql
from psycopg.conninfo import make_conninfo
from psycopg.rows import TupleRow

from bench.limits.tokens import TRACE, USUAL_PLACE
from bench.parts import number, prose, quantile, spread, table
from bench.world import embedded_database, server_cpu_s
from llmqueue.embedded.binaries import PROGRAMS, find_wheel
from llmqueue.fake_backend.call_log import read_calls
from llmqueue.install.adopt import AdoptionSpec, install
from tests.support import processes
from tests.support.eventually import eventually

Connection = psycopg.Connection[TupleRow]

OWNERS_TABLE = """
    create table tasks (
        id bigint generated always as identity primary key,
        prompt text not null,
        model text,
        user_id text,
        status text not null default 'unsolved',
        answer text,
        created_at timestamptz not null default now()
    )"""
COLUMNS = {name: name for name in ("model", "user_id", "created_at")}
CLIENTS = 32
PGBENCH = find_wheel() / PROGRAMS[18] / "bin" / "pgbench"


def inserts(dsn: str, quick: bool) -> str:
    """Measures inserts before `init`, after it, after it without the trigger, and with two plain indexes instead."""
    seconds, rows, rounds = (3, 50_000, 1) if quick else (10, 1_000_000, 3)
    ways = ("before init", "after init", "after init, trigger dropped", "no init, two plain indexes of what is ready")
    singles: dict[str, list[float]] = {way: [] for way in ways}
    copies: dict[str, list[float]] = {way: [] for way in ways}
    with psycopg.connect(dsn, autocommit=True) as conn:
        for number, way in enumerate(ways):
            conn.execute(sql.SQL("create database {}").format(sql.Identifier(f"way{number}")))
            own = make_conninfo(dsn, dbname=f"way{number}")
            with psycopg.connect(own, autocommit=True) as owners:
                owners.execute(OWNERS_TABLE)
                if "after init" in way:
                    install(own, AdoptionSpec(columns=COLUMNS))
                if "trigger dropped" in way:
                    owners.execute("drop trigger llmqueue_wake_up on tasks")
                if "plain indexes" in way:
                    owners.execute("create index on tasks (model, user_id, created_at, id) where status = 'unsolved'")
                    owners.execute("create index on tasks (model, created_at, id) where status = 'unsolved'")
    for _ in range(rounds):
        for number, way in enumerate(ways):
            own = make_conninfo(dsn, dbname=f"way{number}")
            singles[way].append(_singles(own, seconds))
            copies[way].append(_copy(own, rows))
    report = [
        (
            way,
            spread(singles[way], 0),
            f"{statistics.median(singles[way]) / statistics.median(singles[ways[0]]):.0%}",
            spread([rate / 1000 for rate in copies[way]], 0),
            f"{statistics.median(copies[way]) / statistics.median(copies[ways[0]]):.0%}",
        )
        for way in ways
    ]
    head = ("", f"single inserts/s, {CLIENTS} clients", "of before", f"COPY of {rows:,}, 1,000 rows/s", "of before")
    about = """No worker runs. Each row has its own database. The last row is the cost of two plain indexes of the ready
        tasks, by user and by age."""
    return f"## The insert path\n\n{prose(about)}\n\n{table(head, report)}"


def _singles(dsn: str, seconds: int) -> float:
    with psycopg.connect(dsn, autocommit=True) as conn, tempfile.NamedTemporaryFile("w", suffix=".sql") as script:
        conn.execute("truncate tasks")
        conn.execute("checkpoint")
        script.write("insert into tasks (prompt, user_id) values ('What is 6 times 7?', 'somebody');\n")
        script.flush()
        command = [str(PGBENCH), "-n", "-c", str(CLIENTS), "-j", "2", "-T", str(seconds), "-f", script.name, dsn]
        subprocess.run(command, check=True, capture_output=True)
        return number(conn, "select count(*) from tasks") / seconds


def _copy(dsn: str, rows: int) -> float:
    with psycopg.connect(dsn, autocommit=True) as conn:
        conn.execute("truncate tasks")
        conn.execute("checkpoint")
        text = "".join(f"What is {number} times 7?\tuser {number % 100}\n" for number in range(rows))
        began_at = time.perf_counter()
        with conn.cursor().copy("copy tasks (prompt, user_id) from stdin") as copy:
            copy.write(text)
        return rows / (time.perf_counter() - began_at)


def in_flight(dsn: str, quick: bool) -> str:
    """Measures one worker with thousands of calls of a minute in flight at the same time."""
    calls = 500 if quick else 5_000
    folder = Path(tempfile.mkdtemp(prefix="llmqueue-bench-"))
    lag_file = folder / "lag"
    with psycopg.connect(dsn, autocommit=True) as conn:
        conn.execute("insert into llmqueue.model_config (model, rpm) values ('groq-llama-2-70b', 6000000)")
        conn.execute(
            "insert into tasks (prompt) select repeat('word ', 50) || n from generate_series(1, %s) n", (3 * calls,)
        )
        conn.execute("vacuum analyze tasks")
        # 0.8 s at the median, times 75
        with processes.backend(folder, "--speed", str(0.8 / 60)) as url:
            env = processes.environment(
                DATABASE_URL=dsn, BACKEND_URL=url, BACKEND="bench.lagging:backend", CONCURRENCY=str(calls * 10 // 9 + 1)
            )
            env["BENCH_LAG"] = str(lag_file)
            with processes.workers(folder, 1, "--drain", env=env) as [worker]:
                process = psutil.Process(worker.popen.pid)
                most_rss, most_connections, most_running, latest_s = 0, 0.0, 0.0, 0.0
                while worker.popen.poll() is None:
                    try:
                        most_rss = max(most_rss, process.memory_info().rss)
                    except psutil.NoSuchProcess:
                        break
                    most_connections = max(
                        most_connections,
                        number(
                            conn, "select count(*) from pg_stat_activity where application_name = 'llmqueue worker'"
                        ),
                    )
                    most_running = max(
                        most_running, number(conn, "select count(*) from llmqueue.attempt where ended_at is null")
                    )
                    latest_s = max(
                        latest_s,
                        number(
                            conn,
                            "select coalesce(max(extract(epoch from clock_timestamp() -"
                            " heartbeat_at)), 0) from llmqueue.worker",
                        ),
                    )
                    time.sleep(0.5)
                assert worker.wait(10) == 0, worker.output
    lags = [float(line) * 1000 for line in lag_file.read_text().split()]
    rows = [
        (
            f"{most_running:,.0f}",
            f"{most_rss / 1e6:.0f} MB",
            f"{most_connections:.0f}",
            f"{quantile(lags, 0.5):.1f}, {quantile(lags, 0.99):.1f}, {max(lags):.1f}",
            f"{latest_s:.1f} s",
        )
    ]
    head = (
        "calls in flight",
        "memory (RSS)",
        "connections",
        "event loop late by: p50, p99, max ms",
        "oldest heartbeat",
    )
    return (
        f"## {calls:,} calls of a minute in one worker\n\n{3 * calls:,} tasks through `/single`.\n\n{table(head, rows)}"
    )


def fleet(_dsn: str, quick: bool) -> str:
    """Measures many idle workers, and many workers that claim from one model."""
    sizes = (8, 16) if quick else (16, 64)
    busy_sizes = (2, 4) if quick else (4, 16)
    rates: dict[int, list[tuple[float, float]]] = {workers: [] for workers in busy_sizes}
    with embedded_database(max_connections="400") as dsn:
        idle = [_idle(dsn, workers) for workers in sizes]
        for _ in range(1 if quick else 3):
            for workers in busy_sizes:
                rates[workers].append(_busy(dsn, workers, 2_000 if quick else 10_000))
    about = "No-op tasks, one call each; all workers share the two cores. Claims that found nothing are not counted."
    head = ("idle workers", "transactions/s of each", "server CPU, % of a core, of all")
    busy_head = ("workers on one model", "tasks/s of all", "claims/s of all")
    busy = [
        (workers, spread([tasks for tasks, _ in found], 0), spread([claims for _, claims in found], 0))
        for workers, found in rates.items()
    ]
    return "\n\n".join(
        [
            "## Many workers",
            table(head, idle),
            about,
            table(busy_head, busy),
        ]
    )


def _idle(dsn: str, workers: int) -> tuple[object, ...]:
    folder = Path(tempfile.mkdtemp(prefix="llmqueue-bench-"))
    query = "select xact_commit + xact_rollback from pg_stat_database where datname = current_database()"
    with psycopg.connect(dsn, autocommit=True) as conn:
        conn.execute(
            "insert into llmqueue.model_config (model, rpm) select 'm' || n, 60 from"
            " generate_series(1, 10) n on conflict do nothing"
        )
        with processes.backend(folder, "--any-model", "--instant") as url:
            env = processes.environment(DATABASE_URL=dsn, BACKEND_URL=url)
            with processes.workers(folder, workers, env=env) as started:
                eventually(lambda: number(conn, "select count(*) from llmqueue.idle_worker") >= workers, timeout_s=120)
                time.sleep(15)
                before, cpu_s, began_at = number(conn, query), server_cpu_s(conn), time.monotonic()
                time.sleep(30)
                seconds = time.monotonic() - began_at
                each = (number(conn, query) - before) / seconds / workers
                share = (server_cpu_s(conn) - cpu_s) / seconds
                for worker in started:
                    worker.popen.terminate()
                for worker in started:
                    worker.wait(60)
    return workers, f"{each:.2f}", f"{share:.0%}"


def _busy(dsn: str, workers: int, tasks: int) -> tuple[float, float]:
    """Returns tasks and claims per second."""
    folder = Path(tempfile.mkdtemp(prefix="llmqueue-bench-"))
    with psycopg.connect(dsn, autocommit=True) as conn:
        conn.execute("truncate tasks, llmqueue.attempt, llmqueue.ledger_grant, llmqueue.ledger_cell")
        conn.execute(
            "insert into llmqueue.model_config (model, rpm, dispatch) values ('busy', 6000000,"
            " 'single') on conflict do nothing"
        )
        conn.execute(
            "insert into tasks (prompt, model) select 'p' || n, 'busy' from generate_series(1, %s) n", (tasks,)
        )
        conn.execute("vacuum analyze tasks")
        env = processes.environment(DATABASE_URL=dsn, BACKEND="bench.noop:backend")
        with processes.workers(folder, workers, "--drain", env=env) as started:
            assert [worker.wait(600) for worker in started] == [0] * workers
        found = conn.execute(
            """
            select count(*) / extract(epoch from max(granted_at) - min(granted_at)),
                   count(distinct (worker, granted_at)) / extract(epoch from max(granted_at) - min(granted_at))
              from llmqueue.attempt
             -- from when all of them had begun
             where granted_at >= (select max(began)
                                    from (select min(granted_at) as began from llmqueue.attempt group by worker) x)
            """
        ).fetchone()
        assert found is not None
        return float(found[0]), float(found[1])


def trace(dsn: str, quick: bool) -> str:
    """Replays the arrivals of a real trace with a running worker, at their own speed and twenty times as fast."""
    minutes = 1.0 if quick else 10.0
    rows = [_replay(speed, minutes if speed == 1 else min(minutes, 2.9)) for speed in (1, 20)]
    head = (
        "speed",
        "minutes",
        "arrivals",
        "most in a minute",
        "quota (rpm)",
        "wait in the queue: p50, p95, p99, max ms",
    )
    about = """Arrivals of the Azure LLM inference trace (conversations), from INSERT to the grant; one model whose
        quota is 1.2 times the most arrivals in any minute."""
    return f"## A real trace of arrivals\n\n{prose(about)}\n\n{table(head, rows)}"


def _replay(speed: int, minutes: float) -> tuple[object, ...]:
    at_s = [at / speed for at in _arrivals() if at / speed < 60 * minutes]
    most = max(sum(begin <= at < begin + 60 for at in at_s) for begin in at_s[:: max(1, len(at_s) // 500)])
    rpm = int(1.2 * most)
    folder = Path(tempfile.mkdtemp(prefix="llmqueue-bench-"))
    with embedded_database() as dsn, psycopg.connect(dsn, autocommit=True) as conn:
        conn.execute("insert into llmqueue.model_config (model, rpm) values ('groq-llama-2-70b', %s)", (rpm,))
        with processes.backend(folder) as url:
            env = processes.environment(DATABASE_URL=dsn, BACKEND_URL=url)
            with processes.workers(folder, 1, env=env) as [worker]:
                eventually(lambda: conn.execute("select 1 from llmqueue.idle_worker").fetchall())
                began_at = time.monotonic()
                for number, at in enumerate(at_s):
                    time.sleep(max(0.0, began_at + at - time.monotonic()))
                    conn.execute("insert into tasks (prompt) values (%s)", (f"p{number}",))
                eventually(
                    lambda: not conn.execute("select 1 from tasks where status <> 'solved' limit 1").fetchall(),
                    timeout_s=120,
                )
                worker.stop()
        waits = [
            float(row[0])
            for row in conn.execute(
                "select extract(epoch from a.granted_at - t.created_at) * 1000 from tasks t join"
                " llmqueue.attempt a on a.task_id = t.id"
            )
        ]
    assert not [call for call in read_calls(folder / "calls.jsonl") if call.status != 200]
    shown = ", ".join(f"{quantile(waits, part):.0f}" for part in (0.5, 0.95, 0.99, 1.0))
    return f"{speed} x", f"{minutes:g}", f"{len(at_s):,}", f"{most:,}", f"{rpm:,}", shown


def _arrivals() -> Sequence[float]:
    file = Path(os.environ.get(TRACE) or USUAL_PLACE)
    if not file.exists():
        raise SystemExit(f"there is no trace at {file}: name the file in {TRACE}")
    with gzip.open(file, "rt", encoding="utf-8", newline="") as lines:
        times = [datetime.fromisoformat(row["TIMESTAMP"][:26]) for row in csv.DictReader(lines)]
    return [(at - times[0]).total_seconds() for at in times]
