"""llmqueue in real time: a database, a backend, a slow network to it, and four worker processes with faults."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from bisect import bisect_right
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import psycopg
from psycopg.rows import TupleRow
from psycopg.types.json import Jsonb

from bench.limits.stalling import FREEZE, STALLED
from bench.world import cpu_s, embedded_database, postmaster
from llmqueue.fake_backend.call_log import LoggedCall, read_calls
from tests.support import processes
from tests.support.eventually import eventually

ROOT = Path(__file__).parents[2]
WORKERS = 4
FREEZE_S = 30.0

Connection = psycopg.Connection[TupleRow]


@dataclass(frozen=True, slots=True)
class Model:
    """A model. `name` decides its latency: the fake backend knows ten measured models, others get one of their rows."""

    name: str
    rpm: int
    burst_windows: Mapping[str, float] | None = None


@dataclass(frozen=True, slots=True)
class Freeze:
    """A worker, by number, that is stopped for 30 s while it holds grants, one of them for `model`."""

    worker: int
    model: str
    at_s: float
    lease_s: float  # of that worker; above 30 it does not count as dead meanwhile


@dataclass(frozen=True, slots=True)
class Plan:
    models: Sequence[Model]
    seconds: float
    guard_s: float = 0.5
    way_s: float = 0.25  # the largest difference in network delay between two calls
    freezes: Sequence[Freeze] = ()

    def lease_s(self, worker: int) -> float:
        return next((freeze.lease_s for freeze in self.freezes if freeze.worker == worker), 20.0)


@dataclass(slots=True)
class Frozen:
    """The fate of the unsent grants of a frozen worker: returned, or swept with their worker."""

    lease_s: float
    returned: int = 0
    swept: int = 0
    arrived: int = 0  # must be 0


@dataclass(slots=True)
class Run:
    """The results. Arrivals are seconds since the first of all; until `end_s` there was backlog."""

    guard_s: float
    arrivals: Mapping[str, list[float]]
    end_s: float
    stalls: int
    late_grants: int
    lost: int
    sent_after_s: list[float]  # of each call: from its grant to its sending, by the worker's clock
    arrived_after_s: list[float]  # of each call: from its grant, by the database's clock, to its arrival
    cpu_s: Mapping[str, float]
    frozen: list[Frozen] = field(default_factory=list)
    audit: str = ""


def run(plan: Plan) -> Run:
    """Starts everything, lets it work for `plan.seconds` after the first call, and evaluates the arrivals."""
    with ExitStack() as outer:
        folder = Path(outer.enter_context(tempfile.TemporaryDirectory(prefix="llmqueue-bench-")))
        dsn = outer.enter_context(embedded_database())
        conn = outer.enter_context(psycopg.connect(dsn, autocommit=True))
        _fill(conn, plan)
        with ExitStack() as stack:
            url = stack.enter_context(processes.backend(folder, "--any-model", "--seed", "1"))
            way = stack.enter_context(_way(url, plan.way_s))
            workers = stack.enter_context(_workers(folder, plan, dsn, way))
            eventually(lambda: conn.execute("select 1 from llmqueue.attempt limit 1").fetchall(), timeout_s=60)
            began_at = time.monotonic()
            moments = [_freeze(conn, folder, workers, freeze, began_at) for freeze in plan.freezes]
            time.sleep(max(0.0, began_at + plan.seconds - time.monotonic()))
            end_at = time.monotonic()
            cpu_s = _cpu_s(conn, folder, workers)
            for worker in workers:
                worker.popen.send_signal(signal.SIGTERM)
            for worker in workers:
                worker.wait(60)
        calls = read_calls(folder / "calls.jsonl")
        result = _look(conn, calls, plan, end_at)
        result.cpu_s = cpu_s
        result.stalls = sum(worker.output.count(STALLED) for worker in workers)
        result.frozen = [
            _frozen(conn, calls, freeze, *found) for freeze, found in zip(plan.freezes, moments, strict=True)
        ]
        result.audit = _audit(dsn)
    return result


def _fill(conn: Connection, plan: Plan) -> None:
    for model in plan.models:
        conn.execute(
            "insert into llmqueue.model_config (model, rpm, burst_windows) values (%s, %s, %s)",
            (model.name, model.rpm, None if model.burst_windows is None else Jsonb(dict(model.burst_windows))),
        )
        tasks = int(model.rpm * (plan.seconds / 60 + 2))
        conn.execute(
            "insert into tasks (prompt, model) select 'prompt ' || n, %s from generate_series(1, %s) n",
            (model.name, tasks),
        )
    conn.execute("vacuum analyze")


@contextmanager
def _way(url: str, most_s: float) -> Iterator[str]:
    command = [sys.executable, "-m", "bench.limits.proxy", url.rpartition(":")[2].rstrip("/"), str(most_s)]
    popen = subprocess.Popen(command, stdout=subprocess.PIPE, cwd=ROOT)
    assert popen.stdout is not None
    try:
        yield popen.stdout.readline().decode().strip()
    finally:
        popen.terminate()
        popen.wait(10)
        popen.stdout.close()


@contextmanager
def _workers(folder: Path, plan: Plan, dsn: str, url: str) -> Iterator[list[processes.Process]]:
    started = []
    try:
        for number in range(WORKERS):
            env = processes.environment(
                DATABASE_URL=dsn,
                BACKEND_URL=url,
                BACKEND="bench.limits.stalling:factory",
                GUARD_S=str(plan.guard_s),
                LEASE_S=str(plan.lease_s(number)),
                DRAIN_S="0.5",
                LOG_LEVEL="warning",
            ) | {FREEZE: str(folder / f"freeze{number}"), "PYTHONPATH": os.pathsep.join([str(ROOT / "src"), str(ROOT)])}
            started.append(processes.start(folder / f"worker{number}.out", "worker", env=env))
        yield started
    finally:
        for process in started:
            if process.popen.poll() is None:
                process.popen.kill()
            process.popen.wait(10)


# --- freezing ---------------------------------------------------------------------------------------------------


def _freeze(
    conn: Connection, folder: Path, workers: Sequence[processes.Process], freeze: Freeze, began_at: float
) -> tuple[str, float]:
    """Freezes the worker and wakes it again; returns its uuid and the wall clock when it was stopped."""
    time.sleep(max(0.0, began_at + freeze.at_s - time.monotonic()))
    process = workers[freeze.worker].popen
    found = conn.execute(
        "select worker::text from llmqueue.worker where name like %s", (f"%:{process.pid}",)
    ).fetchone()
    assert found is not None
    written = folder / "freeze"
    written.write_text(freeze.model)
    written.rename(folder / f"freeze{freeze.worker}")
    eventually(lambda: psutil.Process(process.pid).status() == psutil.STATUS_STOPPED, timeout_s=20)
    stopped_at = time.time()
    time.sleep(FREEZE_S)
    process.send_signal(signal.SIGCONT)
    return found[0], stopped_at


def _frozen(conn: Connection, calls: Sequence[LoggedCall], freeze: Freeze, worker: str, stopped_at: float) -> Frozen:
    rows = conn.execute(
        """
        select a.task_id::text, extract(epoch from a.granted_at)::float8, a.outcome
          from llmqueue.attempt a
         where a.worker = %(worker)s and a.sent_at is null
           and abs(extract(epoch from a.granted_at) - %(at)s) < 1 and extract(epoch from a.ended_at) > %(at)s + 5
        """,
        {"worker": worker, "at": stopped_at},
    ).fetchall()
    arrived = _arrivals_by_task(calls)
    frozen = Frozen(freeze.lease_s)
    for task, granted_at, outcome in rows:
        again = conn.execute(
            "select min(extract(epoch from granted_at))::float8 from llmqueue.attempt"
            " where task_id::text = %s and granted_at > to_timestamp(%s) + interval '1 second'",
            (task, granted_at),
        ).fetchone()
        until = again[0] if again and again[0] is not None else float("inf")
        frozen.arrived += any(granted_at <= at < until for at in arrived.get(task, ()))
        frozen.returned += outcome == "released"
        frozen.swept += outcome == "lost"
    return frozen


# --- arrivals ---------------------------------------------------------------------------------------------------


def _arrivals_by_task(calls: Sequence[LoggedCall]) -> dict[str, list[float]]:
    arrived = defaultdict(list)
    for call in calls:
        arrived[(call.key or "").partition(":")[0]].append(call.arrived_at)
    return arrived


def _look(conn: Connection, calls: Sequence[LoggedCall], plan: Plan, end_at: float) -> Run:
    first_at = min(call.arrived_monotonic for call in calls)
    arrivals = defaultdict(list)
    for call in calls:
        arrivals[call.model].append(call.arrived_monotonic - first_at)
    outcomes = Counter(
        {
            (outcome, error): number
            for outcome, error, number in conn.execute(
                "select outcome, error_class, count(*) from llmqueue.attempt group by 1, 2"
            ).fetchall()
        }
    )
    return Run(
        guard_s=plan.guard_s,
        arrivals=arrivals,
        end_s=end_at - first_at,
        stalls=0,
        late_grants=outcomes["released", "late_grant"],
        lost=sum(number for (outcome, _), number in outcomes.items() if outcome == "lost"),
        sent_after_s=[
            float(seconds)
            for (seconds,) in conn.execute(
                "select extract(epoch from sent_at - granted_at)::float8 from llmqueue.attempt"
                " where sent_at is not null"
            )
        ],
        arrived_after_s=_arrived_after_s(conn, calls),
        cpu_s={},
    )


def _arrived_after_s(conn: Connection, calls: Sequence[LoggedCall]) -> list[float]:
    """Returns for each arrival the time since the last grant of its task, by the wall clock of this machine."""
    granted = defaultdict(list)
    for task, at in conn.execute(
        "select task_id::text, extract(epoch from granted_at)::float8 from llmqueue.attempt order by granted_at"
    ):
        granted[task].append(at)
    return [
        at - granted[task][bisect_right(granted[task], at) - 1]
        for task, times in _arrivals_by_task(calls).items()
        for at in times
    ]


def _cpu_s(conn: Connection, folder: Path, workers: Sequence[processes.Process]) -> dict[str, float]:
    """Returns the CPU seconds so far, by kind of process; for the database, of its present processes."""
    server = postmaster(conn)
    kinds = {"workers": [psutil.Process(worker.popen.pid) for worker in workers]}
    kinds["database"] = [server, *server.children()]
    for child in psutil.Process().children():
        line = " ".join(child.cmdline())
        if str(folder / "calls.jsonl") in line:
            kinds["backend"] = [child]
        elif "bench.limits.proxy" in line:
            kinds["way"] = [child]
    return {kind: sum(map(cpu_s, members)) for kind, members in kinds.items()}


def _audit(dsn: str) -> str:
    """Returns the verdict of `llmqueue audit` on the same run."""
    result = processes.run("audit", env=processes.environment(DATABASE_URL=dsn), timeout_s=600)
    return {0: "no violation", 1: "violation"}.get(
        result.returncode, f"exit {result.returncode}: {result.stdout}{result.stderr}"
    )
