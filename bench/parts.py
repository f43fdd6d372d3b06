"""Measurements of claims and throughput, and the functions that all parts share.

A measurement takes the DSN of a fresh installed database and returns a section of docs/benchmarks.md.
"""

from __future__ import annotations

import json
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from textwrap import fill
from typing import LiteralString
from uuid import UUID

import psycopg
from psycopg.rows import TupleRow

from tests.support import processes

Connection = psycopg.Connection[TupleRow]

PAGE = Path(__file__).parents[1] / "docs" / "benchmarks.md"
WORKER = UUID(int=1)
ROUNDS = 60
HELD_SPACE = "\0"


def row(values: Sequence[object]) -> str:
    return "| " + " | ".join(str(value) for value in values) + " |"


def table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    return "\n".join([row(head), row(["---"] * len(head)), *(row(values) for values in rows)])


def prose(text: str) -> str:
    """Returns a paragraph of a page, wrapped, but not within code."""
    code_held = re.sub(r"`[^`]*`", lambda code: code[0].replace(" ", HELD_SPACE), " ".join(text.split()))
    return fill(code_held, 118, break_long_words=False, break_on_hyphens=False).replace(HELD_SPACE, " ")


def spread(values: Sequence[float], digits: int = 2) -> str:
    low, middle, high = min(values), statistics.median(values), max(values)
    return f"{middle:.{digits}f} ({low:.{digits}f}-{high:.{digits}f})"


def number(conn: Connection, query: LiteralString) -> float:
    """Returns the only number that a query returns."""
    found = conn.execute(query).fetchone()
    assert found is not None
    return float(found[0])


def claim(dsn: str, quick: bool) -> str:
    """Measures one claim of 50 and one settle of 50, by the number of ready tasks."""
    sizes = (5_000, 20_000) if quick else (10_000, 1_000_000, 10_000_000)
    rows = []
    with psycopg.connect(dsn, autocommit=True) as conn:
        conn.execute("insert into llmqueue.model_config (model, rpm) values ('a', 6000000)")
        conn.execute("select llmqueue.register(%s, 'bench', '0', null, 3600, 0.5)", (WORKER,))
        for size in sizes:
            conn.execute("truncate tasks, llmqueue.attempt, llmqueue.ledger_grant, llmqueue.ledger_cell")
            conn.execute("insert into tasks (prompt) select 'p' || n from generate_series(1, %s) n", (size,))
            conn.execute("vacuum analyze tasks")
            claims, settles = zip(*islice(_rounds(conn, 50), ROUNDS), strict=True)
            rows.append((f"{size:,}", spread(claims), f"{max(claims[5:]):.2f}", spread(settles)))
    head = ("ready tasks", "claim of 50, ms", "slowest after the first five", "settle of 50, ms")
    return f"## Claim and settle\n\n{ROUNDS} rounds each, one connection.\n\n{table(head, rows)}"


def _rounds(conn: Connection, slots: int) -> Iterator[tuple[float, float]]:
    """Claims and completes `slots` tasks at a time until fewer are left; yields the milliseconds of both."""
    claim_state: object = None
    query = (
        "select (task).fence, (task).task_id, claim_state from llmqueue.claim(%s, array['a'], %s, p_claim_state => %s)"
    )
    while True:
        began_at = time.perf_counter()
        rows = conn.execute(query, (WORKER, slots, None if claim_state is None else json.dumps(claim_state))).fetchall()
        claim_s = time.perf_counter() - began_at
        claim_state = next((row[2] for row in rows if row[2] is not None), claim_state)
        items = [
            {"verb": "complete", "fence": fence, "task_id": str(key), "answer": "x"}
            for fence, key, _ in rows
            if fence is not None
        ]
        if len(items) < slots:
            return
        began_at = time.perf_counter()
        conn.execute("select count(*) from llmqueue.settle(%s, %s::jsonb)", (WORKER, json.dumps(items)))
        yield claim_s * 1000, (time.perf_counter() - began_at) * 1000


def held(dsn: str, quick: bool) -> str:
    """Measures claims while a backlog drains, without another transaction and with one open since the start."""
    rows = []
    for slots, tasks in ((100, 20_000), (1, 3_000)) if quick else ((100, 200_000), (1, 100_000)):
        for is_held in (False, True):
            with psycopg.connect(dsn, autocommit=True) as conn, psycopg.connect(dsn) as holder:
                conn.execute(
                    "insert into llmqueue.model_config (model, rpm, max_concurrency) values ('a', 6000000, 1000)"
                    " on conflict do nothing"
                )
                conn.execute("select llmqueue.register(%s, 'bench', '0', null, 3600, 0.5)", (WORKER,))
                conn.execute("truncate tasks, llmqueue.attempt, llmqueue.ledger_grant, llmqueue.ledger_cell")
                conn.execute("insert into tasks (prompt) select 'p' || n from generate_series(1, %s) n", (tasks,))
                conn.execute("vacuum analyze tasks")
                if is_held:
                    holder.execute("set transaction isolation level repeatable read")
                    holder.execute("select from tasks limit 1")
                claims = [claim_ms for claim_ms, _ in _rounds(conn, slots)]
            tenth = len(claims) // 10
            first, last = claims[tenth : 2 * tenth], claims[-tenth:]
            rows.append(
                (
                    slots,
                    f"{tasks:,}",
                    "yes" if is_held else "no",
                    *(f"{quantile(part, 0.5):.2f}, {quantile(part, 0.99):.2f}" for part in (first, last)),
                    f"{statistics.median(last) / statistics.median(first):.2f}",
                )
            )
    head = (
        "claim of",
        "tasks",
        "transaction open",
        "second tenth: p50, p99 ms",
        "last tenth: p50, p99 ms",
        "last / second",
    )
    return f"## A claim while a transaction is open\n\n{table(head, rows)}"


def quantile(values: Sequence[float], part: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(part * len(ordered)))]


IN_FLIGHT = (16, 256, 1024)


def throughput(dsn: str, quick: bool) -> str:
    """Measures tasks per second with an instant backend and high limits, beside a bare loop of the same client."""
    tasks, rounds = (2_000, 1) if quick else (5_000, 3)
    many = 4 * tasks  # if one call carries several tasks
    rates: dict[tuple[str, int], list[float]] = defaultdict(list)
    with psycopg.connect(dsn, autocommit=True) as conn:
        conn.execute("insert into llmqueue.model_config (model, rpm, max_batch) values ('m1', 6000000, 50)")
        for _ in range(rounds):
            for in_flight in IN_FLIGHT:
                rates["bare", in_flight].append(bare(in_flight, quick))
                rates["straight", in_flight].append(bare(in_flight, quick, "straight"))
                for way in ("single", "batch", "auto"):
                    conn.execute("update llmqueue.model_config set dispatch = %s", (way,))
                    some = tasks if way == "single" else many
                    rates[way, in_flight].append(_drain(dsn, conn, some, 1, in_flight))
            conn.execute("update llmqueue.model_config set dispatch = 'single'")
            rates["two", 256].append(_drain(dsn, conn, tasks, 2, 256))
    rows = []
    for in_flight in IN_FLIGHT:
        found = [rates[way, in_flight] for way in ("bare", "straight", "single", "batch", "auto")]
        alone, straight, single, batch, _ = map(statistics.median, found)
        ratios = f"{single / alone:.2f}, {single / straight:.2f}"
        rows.append((in_flight, *(spread(rate, 0) for rate in found), ratios, f"{batch / single:.1f}"))
    head = (
        "in flight",
        "bare loop, httpx on aiohttp's connections: calls/s",
        "bare loop, straight to the transport",
        "`/single`: tasks/s",
        "`/batch` of up to 50",
        "`auto`",
        "single / bare, of either",
        "batch / single",
    )
    about = f"""{tasks:,} tasks ({many:,} by `/batch` and `auto`). The second half counts, because `auto` sends single
        calls for the first half second. One worker process, one model. The simulated backend answers at once, logs
        every call, and shares the two cores with worker and server. The bare loops are the worker's HTTP client alone:
        through httpx, and straight to the transport as the worker uses it. Two workers, 256 in flight each, `/single`:
        {spread(rates["two", 256], 0)} tasks/s."""
    return f"## Tasks per second over real HTTP\n\n{prose(about)}\n\n{table(head, rows)}"


SINGLE = {"model": "m1", "prompt": "p1"}


def bare(in_flight: int, quick: bool, *how: str) -> float:
    with processes.backend(Path(tempfile.mkdtemp(prefix="llmqueue-bench-")), "--any-model", "--instant") as url:
        return loop(url, "/single", SINGLE, in_flight, quick, *how)


def loop(url: str, path: str, body: Mapping[str, object], in_flight: int, quick: bool, *how: str) -> float:
    command = [sys.executable, "-m", "bench.bare", url, path, str(in_flight), "2" if quick else "5", json.dumps(body)]
    return float(subprocess.run([*command, *how], check=True, capture_output=True, text=True).stdout)


def _drain(dsn: str, conn: Connection, tasks: int, workers: int, in_flight: int) -> float:
    folder = Path(tempfile.mkdtemp(prefix="llmqueue-bench-"))
    conn.execute("truncate tasks, llmqueue.attempt")
    conn.execute("insert into tasks (prompt) select 'p' || n from generate_series(1, %s) n", (tasks,))
    conn.execute("vacuum analyze tasks")
    # a tenth of the slots is reserved for hot tasks
    slots = str(in_flight * 10 // 9 + 1)
    with processes.backend(folder, "--any-model", "--instant") as url:
        env = processes.environment(DATABASE_URL=dsn, BACKEND_URL=url, CONCURRENCY=slots)
        with processes.workers(folder, workers, "--drain", env=env) as started:
            assert [process.wait(600) for process in started] == [0] * workers
    return number(
        conn,
        # from the end of one flush to the end of the last
        "select count(*) filter (where ended_at > since) / extract(epoch from max(ended_at) - min(since))"
        " from llmqueue.attempt, (select percentile_disc(0.5) within group (order by ended_at) as since"
        "                           from llmqueue.attempt where outcome = 'completed') half"
        " where outcome = 'completed'",
    )
