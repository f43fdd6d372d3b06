"""llmqueue's functions in simulated time: the shipped SQL, in a real database, with a simulated clock."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from uuid import uuid4

import psycopg
from psycopg import sql
from psycopg.rows import TupleRow
from psycopg.types.json import Jsonb

from bench.limits.discrete import AWAKE_S, BEGIN_S, SEND_S, STORE_S, WAY_S, Arrive, Process, processes_of, relative
from llmqueue.db.connect import connect
from llmqueue.embedded import server as embedded
from llmqueue.forecast.scheduler import SqlScheduler
from llmqueue.forecast.stage import APPLICATION, start_server, temporary_database
from llmqueue.forecast.timeline import Timeline
from llmqueue.types import LATE, Claim, Complete, Grant, Room, Settlement, Usage
from llmqueue.worker.ask_times import JITTER_S
from llmqueue.worker.maintenance import PRUNE_S
from llmqueue.worker.planner import MAX_CLAIM, POLL_S

Connection = psycopg.Connection[TupleRow]

MODEL = "m"
LEASE_S = 60.0  # long enough that the frozen process does not count as dead
HEARTBEAT_S = LEASE_S / 5
LINGER_S = 0.1
MAINTENANCE = {"heartbeat": HEARTBEAT_S, "prune": PRUNE_S}

# Returns the usage and the latency of a call, from its grant.
Answer = Callable[[Grant], tuple[Usage, float]]


@contextmanager
def accelerated_server() -> Iterator[str]:
    """Yields a server without fsync, because simulated data may be lost."""
    home = Path(tempfile.mkdtemp(prefix="llmqueue-bench-"))
    home.chmod(0o755)  # for root the server runs as another user, who must be able to enter
    try:
        yield start_server(home)
    finally:
        embedded.leave(home / "simulate")
        shutil.rmtree(home, ignore_errors=True)


@contextmanager
def queue(
    server: str, rpm: int, guard_s: float, columns: Mapping[str, object]
) -> Iterator[tuple[Connection, SqlScheduler]]:
    """Yields an installed database with one model."""
    with temporary_database(server) as dsn, connect(dsn, application_name=APPLICATION) as conn:
        given = {"model": MODEL, "rpm": rpm, **columns}
        names = sql.SQL(", ").join(map(sql.Identifier, given))
        values = [Jsonb(value) if isinstance(value, dict) else value for value in given.values()]
        places = sql.SQL(", ").join([sql.Placeholder()] * len(given))
        conn.execute(sql.SQL("insert into llmqueue.model_config ({}) values ({})").format(names, places), values)
        yield conn, SqlScheduler(conn, guard_s=guard_s, lease_s=LEASE_S, input_tokens=2)


class Worker:
    """Claims, sends the calls that are in time, and returns the others."""

    def __init__(self, process: Process, scheduler: SqlScheduler, arrive: Arrive, answer: Answer) -> None:
        self.late_grants = 0
        self._process = process
        self._scheduler = scheduler
        self._arrive = arrive
        self._answer = answer
        self._worker = uuid4()
        self._running = 0
        self._claim_state: str | None = None
        self._done_at: dict[str, float] = {}
        self._ends: list[Settlement] = []
        scheduler.register(self._worker, process.now)

    def ask(self) -> None:
        half_s = self._process.rng.uniform(*STORE_S) / 2
        self._process.timeline.at(self._process.now + half_s, partial(self._claim, half_s))

    def _claim(self, half_s: float) -> None:
        now = self._process.now
        due = [work for work, every_s in MAINTENANCE.items() if now - self._done_at.get(work, 0.0) >= every_s]
        self._done_at |= dict.fromkeys(due, now)
        room = Room(MAX_CLAIM, 0)
        claim = self._scheduler.claim(self._worker, [MODEL], room, due, self._running, self._claim_state, now)
        self._claim_state = claim.claim_state or self._claim_state
        self._process.at(now + half_s, partial(self._got, claim))

    def _got(self, claim: Claim) -> None:
        process = self._process
        for grant in claim.grants:
            self._running += 1
            process.after(SEND_S, partial(self._send, grant))
        [refusal] = claim.refusals
        if refusal.reason is None:
            self.ask()
            return
        wait_s = POLL_S if refusal.retry_in_s is None else refusal.retry_in_s + process.rng.uniform(0, JITTER_S)
        process.at(process.now + min(wait_s, POLL_S) + process.rng.uniform(*AWAKE_S), self.ask)

    def _send(self, grant: Grant) -> None:
        now = self._process.now
        if now > grant.send_before:
            self.late_grants += 1
            self._settle(Settlement(grant, LATE, None, None))
            return
        self._arrive(now + self._process.rng.uniform(*WAY_S))
        usage, latency_s = self._answer(grant)
        end = Settlement(grant, Complete("", usage), now - grant.granted_at, latency_s)
        self._process.at(now + latency_s, partial(self._settle, end))

    def _settle(self, settlement: Settlement) -> None:
        self._ends.append(settlement)
        if len(self._ends) == 1:
            self._process.at(self._process.now + LINGER_S, self._flush)

    def _flush(self) -> None:
        ends, self._ends = self._ends, []
        self._running -= len(ends)
        self._scheduler.settle(self._worker, ends, self._process.now)


def run(
    server: str,
    rpm: int,
    seconds: float,
    seed: int,
    *,
    guard_s: float = 0.5,
    burst_windows: Mapping[str, float] | None = None,
) -> tuple[list[float], int]:
    """Returns the arrivals, in seconds since the start, and the number of grants returned late."""
    columns = {} if burst_windows is None else {"burst_windows": dict(burst_windows)}
    with queue(server, rpm, guard_s, columns) as (conn, scheduler):
        scheduler.insert(MODEL, int(rpm * (seconds / 60 + 2)), 0)
        conn.execute("vacuum analyze")
        timeline = Timeline()
        timeline.now = BEGIN_S
        arrivals: list[float] = []
        workers = []
        for process in processes_of(timeline, seconds, seed):
            worker = Worker(process, scheduler, arrivals.append, lambda _: (Usage(), 5.0))
            process.after(AWAKE_S, worker.ask)
            workers.append(worker)
        while timeline.step(BEGIN_S + seconds):
            pass
    return relative(arrivals, seconds), sum(worker.late_grants for worker in workers)
