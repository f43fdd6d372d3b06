"""Drains no-op tasks with one worker process and with two: llmqueue and its peers, alternating, in one run."""

from __future__ import annotations

import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import psutil
import psycopg
from psycopg.rows import TupleRow

from bench import peers
from bench.parts import prose, spread, table
from bench.world import cpu_s, embedded_database, server_cpu_s
from tests.support import processes

Connection = psycopg.Connection[TupleRow]
POLL_S = 0.02


@dataclass(frozen=True)
class Drained:
    """Tasks per second, and microseconds of CPU per task in the workers and in the server."""

    rate: float
    client_us: float
    server_us: float


def drain(_dsn: str, quick: bool) -> str:
    """Runs each contender on a fresh server, alternating."""
    few, many, rounds = (5_000, 5_000, 1) if quick else (20_000, 100_000, 3)
    contenders = _contenders(few, many)
    results: dict[str, list[Drained]] = {name: [] for name in contenders}
    for _ in range(rounds):
        for name, run in contenders.items():
            results[name].append(run())
            print(f"{name}: {results[name][-1]}", flush=True)
    rows = [(name, *spreads(runs)) for name, runs in results.items()]
    head = ("", "tasks/s", "worker CPU, µs per task", "server CPU, µs per task")
    about = f"""{many:,} tasks for llmqueue, PgQueuer, pg-boss and Graphile Worker in batches, {few:,} for the slower
        ones. All tasks are ready before the workers start, each time on a fresh server. llmqueue enforces limits (too
        high to be reached) and keeps each attempt on disk. The peers limit nothing; Procrastinate and pg-boss keep
        finished jobs, the others keep nothing. Redis holds everything in memory. None logs a line per task unless the
        row says so. Time counts from the first task begun to the last end written."""
    return f"## Drain of tasks that do nothing\n\n{prose(about)}\n\n{table(head, rows)}"


def spreads(runs: Sequence[Drained], cpu_digits: int = 0) -> tuple[str, str, str]:
    """Returns the columns of a table."""
    return (
        spread([run.rate for run in runs], 0),
        spread([run.client_us for run in runs], cpu_digits),
        spread([run.server_us for run in runs], cpu_digits),
    )


def _contenders(few: int, many: int) -> dict[str, Callable[[], Drained]]:
    def ours(workers: int, models: int, dispatch: str = "auto", level: str = "warning") -> Callable[[], Drained]:
        return lambda: _ours(many, workers, models, dispatch, level)

    def theirs(peer: peers.Peer, workers: int, tasks: int = few) -> Callable[[], Drained]:
        return lambda: _theirs(peer, tasks, workers)

    pgqueuer, procrastinate = peers.pgqueuer(), peers.procrastinate()
    plain, batched = peers.graphile(), peers.graphile("batched")
    pgboss, celery, taskiq = peers.pgboss(), peers.celery(), peers.taskiq()
    return {
        "llmqueue, one model": ours(1, 1),
        "llmqueue, one model, 2 workers": ours(2, 1),
        "llmqueue, one model, a line of log per attempt": ours(1, 1, level="info"),
        "llmqueue, one model, each task in a call of its own": ours(1, 1, "single"),
        "llmqueue, pool of ten models": ours(1, 10),
        pgqueuer.title: theirs(pgqueuer, 1, many),
        f"{pgqueuer.title}, 2 workers": theirs(pgqueuer, 2, many),
        procrastinate.title: theirs(procrastinate, 1),
        plain.title: theirs(plain, 1),
        batched.title: theirs(batched, 1, many),
        pgboss.title: theirs(pgboss, 1, many),
        celery.title: theirs(celery, 1),
        taskiq.title: theirs(taskiq, 1),
    }


def _ours(tasks: int, workers: int, models: int, dispatch: str, level: str) -> Drained:
    folder = Path(tempfile.mkdtemp(prefix="llmqueue-bench-"))
    with embedded_database() as dsn, psycopg.connect(dsn, autocommit=True) as conn:
        conn.execute(
            "insert into llmqueue.model_config (model, rpm, dispatch) select 'm' || n, 6000000, %s"
            " from generate_series(1, %s) n",
            (dispatch, models),
        )
        conn.execute("insert into tasks (prompt) select 'p' || n from generate_series(1, %s) n", (tasks,))
        conn.execute("vacuum analyze")
        env = processes.environment(DATABASE_URL=dsn, BACKEND="bench.noop:backend", LOG_LEVEL=level)
        with processes.workers(folder, workers, "--drain", env=env) as started:
            pids = [process.popen.pid for process in started]
            while conn.execute("select from llmqueue.attempt limit 1").fetchone() is None:
                time.sleep(POLL_S)
            client_s, server_s = _cpu_s(pids), server_cpu_s(conn)
            while conn.execute("select 1 from tasks where status <> 'solved' limit 1").fetchone() is not None:
                time.sleep(POLL_S)
            client_s, server_s = _cpu_s(pids) - client_s, server_cpu_s(conn) - server_s
            assert [process.wait(600) for process in started] == [0] * workers
        found = conn.execute(
            "select count(*), extract(epoch from max(ended_at) - min(granted_at))::float8 from llmqueue.attempt"
            " where outcome = 'completed'"
        ).fetchone()
        assert found is not None
        assert found[0] == tasks
    return Drained(tasks / found[1], client_s / tasks * 1e6, server_s / tasks * 1e6)


def _theirs(peer: peers.Peer, tasks: int, workers: int) -> Drained:
    with peer.server() as server:
        peer.fill(server.url, tasks)
        server.settle()
        with workers_of(peer, server.url, workers) as started:
            began_at = _first_job_at(started[0])
            pids = [process.pid for process in started]
            client_s, server_s = _cpu_s(pids), server.cpu_s()
            while server.has(peer.left):
                time.sleep(POLL_S)
            seconds = time.time() - began_at
            client_s, server_s = _cpu_s(pids) - client_s, server.cpu_s() - server_s
    return Drained(tasks / seconds, client_s / tasks * 1e6, server_s / tasks * 1e6)


@contextmanager
def workers_of(
    peer: peers.Peer, url: str, workers: int, verb: str = "work"
) -> Iterator[Sequence[subprocess.Popen[str]]]:
    """Yields running workers of a peer; kills them at the end, with all their child processes."""
    started = [peer.work(url, verb) for _ in range(workers)]
    try:
        yield started
    finally:
        for process in started:
            for member in _family(process.pid):
                with suppress(psutil.NoSuchProcess):
                    member.kill()
            process.wait()


def _first_job_at(process: subprocess.Popen[str]) -> float:
    for at in job_times(process):
        return at
    raise RuntimeError("a worker ended before its first job")


def job_times(process: subprocess.Popen[str]) -> Iterator[float]:
    """Yields the times that a worker prints about its jobs, until it ends; skips its other output."""
    assert process.stdout is not None
    for line in process.stdout:
        try:
            at = float(line)
        except ValueError:
            continue
        yield at


def _cpu_s(pids: Sequence[int]) -> float:
    return sum(cpu_s(process) for pid in pids for process in _family(pid))


def _family(pid: int) -> Sequence[psutil.Process]:
    """Returns the process and its descendants, because the process of some peers only supervises its workers."""
    process = psutil.Process(pid)
    return [process, *process.children(recursive=True)]
