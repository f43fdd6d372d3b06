"""Measures whether the rate falls with the size of the backlog or with an open transaction: llmqueue and two peers."""

from __future__ import annotations

import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import psycopg
from psycopg.rows import TupleRow

from bench import peers
from bench.drain import job_times, workers_of
from bench.parts import number, prose, spread, table
from bench.peers.say import EVERY
from bench.world import embedded_database
from tests.support import processes

Connection = psycopg.Connection[TupleRow]

PART_S = 5


def flat(_dsn: str, quick: bool) -> str:
    """Runs each contender on a fresh server, alternating; with the open transaction only once, because that is slow."""
    measured, small, large, held_s, rounds = (
        (2_000, 4_000, 100_000, 10, 1) if quick else (20_000, 25_000, 10**6, 120, 3)
    )
    contenders: Mapping[str, Callable[[int, bool, float, int], Sequence[float]]] = {
        "llmqueue, one model": _ours,
        **{peer.title: partial(_theirs, peer) for peer in (peers.pgqueuer(), peers.graphile("batched"))},
    }
    rates: dict[tuple[str, int], list[float]] = {(name, size): [] for name in contenders for size in (small, large)}
    held: dict[str, Sequence[float]] = {}
    for round_no in range(rounds):
        for name, run in contenders.items():
            for size in (small, large):
                begun = run(size, False, 600, measured)
                rates[name, size].append(measured / (begun[measured // EVERY] - begun[0]))
                print(f"{name}, {size:,}: {rates[name, size][-1]:.0f}/s", flush=True)
            if round_no == 0:
                held[name] = run(large, True, held_s, large)
                print(f"{name}, held: {_shown(held[name], held_s)}", flush=True)
    rows = [
        (name, *(spread(rates[name, size], 0) for size in (small, large)), *_shown(held[name], held_s))
        for name in contenders
    ]
    head = (
        "jobs begun per second",
        f"first {measured:,} of {small:,}",
        f"first {measured:,} of {large:,}",
        f"transaction open, {large:,} ready: after {PART_S} s",
        f"in the last {PART_S} s",
        "begun",
    )
    about = """One worker and no-op jobs, as in the drain above. The transaction begins before the worker starts and
        stays idle, so rows claimed since then cannot be vacuumed."""
    return f"## Flat or not\n\n{prose(about)}\n\n{table(head, rows)}"


def _shown(begun: Sequence[float], seconds: float) -> tuple[str, ...]:
    """Returns jobs per second in five seconds near the begin and in the last five, and how many began in what time."""
    took_s = begun[-1] - begun[0]  # if all jobs have begun, the last time is the end
    is_all = took_s < seconds - PART_S
    until_s = took_s if is_all else seconds

    def rate(since_s: float) -> str:
        since = begun[0] + since_s
        return f"{sum(since <= at < since + PART_S for at in begun) * EVERY / PART_S:.0f}"

    how_many = "all" if is_all else f"{len(begun) * EVERY:,}"
    return rate(PART_S), rate(until_s - PART_S), f"{how_many} in {until_s:.0f} s"


def _ours(tasks: int, is_held: bool, seconds: float, most: int) -> Sequence[float]:
    """Returns the start time of every hundredth task, until `most` have begun or `seconds` have passed."""
    folder = Path(tempfile.mkdtemp(prefix="llmqueue-bench-"))
    with embedded_database() as dsn, psycopg.connect(dsn, autocommit=True) as conn:
        conn.execute("insert into llmqueue.model_config (model, rpm) values ('m1', 6000000)")
        conn.execute("insert into tasks (prompt) select 'p' || n from generate_series(1, %s) n", (tasks,))
        conn.execute("vacuum analyze")
        env = processes.environment(DATABASE_URL=dsn, BACKEND="bench.noop:backend", LOG_LEVEL="warning")
        with _snapshot(dsn, is_held), processes.workers(folder, 1, env=env):
            first = "select coalesce(min(extract(epoch from granted_at)), 0)::float8 from llmqueue.attempt"
            while not number(conn, first):
                time.sleep(0.1)
            until = number(conn, first) + seconds
            # reads the sequence, because counting the attempts of a drain takes too long
            drawn = "select last_value from llmqueue.fence_seq"
            before = number(conn, drawn)
            while time.time() < until and number(conn, drawn) - before < most + 10 * EVERY:
                time.sleep(0.1)
            rows = conn.execute(
                "select extract(epoch from granted_at)::float8 from (select granted_at, row_number() over (order by"
                " granted_at, fence) as no from llmqueue.attempt) a where no %% %s = 1 order by no",
                (EVERY,),
            ).fetchall()
    return [at for (at,) in rows]


def _theirs(peer: peers.Peer, jobs: int, is_held: bool, seconds: float, most: int) -> Sequence[float]:
    with peer.server() as server:
        peer.fill(server.url, jobs)
        server.settle()
        with _snapshot(server.url, is_held), workers_of(peer, server.url, 1) as [process]:
            begun: list[float] = []

            def read() -> None:
                for at in job_times(process):
                    begun.append(at)  # noqa: PERF402 - the other thread reads them one by one

            threading.Thread(target=read, daemon=True).start()

            def is_on() -> bool:
                return not begun or (time.time() < begun[0] + seconds and len(begun) * EVERY <= most)

            while process.poll() is None and is_on():
                time.sleep(0.1)
            if not begun:
                raise RuntimeError(f"{peer.title}: the worker ended before its first job")
            return list(begun)


@contextmanager
def _snapshot(dsn: str, is_held: bool) -> Iterator[None]:
    """Holds a transaction open, with a snapshot of the present state, if `is_held`."""
    with psycopg.connect(dsn) as holder:
        if is_held:
            holder.execute("set transaction isolation level repeatable read")
            holder.execute("select count(*) from pg_class")
        yield
