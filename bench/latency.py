"""The time from INSERT to the start of the call: idle workers of llmqueue and peers, and hot tasks before a backlog."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import psycopg
from psycopg.rows import TupleRow

from bench import peers
from bench.drain import workers_of
from bench.parts import prose, quantile, spread, table
from bench.world import embedded_database
from llmqueue.fake_backend.call_log import read_calls
from tests.support import processes
from tests.support.eventually import eventually

Connection = psycopg.Connection[TupleRow]
Waits = Sequence[float]  # seconds

GAP_S = 0.02
MODELS = 10


def latency(_dsn: str, quick: bool) -> str:
    """Runs each contender on a fresh server, alternating."""
    inserts, rounds = (100, 1) if quick else (500, 3)
    contenders: dict[str, Callable[[], Waits]] = {
        "llmqueue, to the start of the call": lambda: _to_start(inserts),
        "llmqueue, to the arrival at the backend, over HTTP": lambda: _to_arrival(inserts),
        "llmqueue, hot tasks in front of a backlog that uses up the quota": lambda: _hot(inserts // 2),
    }
    for peer in (peers.pgqueuer(), peers.graphile(), peers.procrastinate()):
        contenders[f"{peer.title.split(',')[0]}, to the start of the job"] = partial(_of_peer, peer, inserts)
    waits: dict[str, list[Waits]] = {name: [] for name in contenders}
    for _ in range(rounds):
        for name, run in contenders.items():
            waits[name].append(run())
            print(f"{name}: {_shown(waits[name][-1:])}", flush=True)
    rows = [(name, *_shown(runs)) for name, runs in waits.items()]
    about = f"""{inserts} inserts, one every {GAP_S * 1000:.0f} ms, with an idle worker; time counts from before the
        INSERT. llmqueue has {MODELS} models to choose from, the peers limit nothing. The backlog is 20,000 tasks, with
        a quota of 600 a minute for each model and a window that has been full for a second. Then come {inserts // 2}
        hot tasks, ten a second, after 30 that make the models reserve calls for hot tasks."""
    return f"## Insert to start\n\n{prose(about)}\n\n{table(('', 'p50 ms', 'p99 ms', 'max ms'), rows)}"


def _shown(runs: Sequence[Waits]) -> tuple[str, ...]:
    return tuple(spread([quantile(waits, part) * 1000 for waits in runs], 1) for part in (0.5, 0.99, 1.0))


def _to_start(inserts: int) -> Waits:
    folder = Path(tempfile.mkdtemp(prefix="llmqueue-bench-"))
    with embedded_database() as dsn, psycopg.connect(dsn, autocommit=True) as conn:
        _add_models(conn, 6000)
        env = processes.environment(DATABASE_URL=dsn, BACKEND="bench.noop:waits")
        env["BENCH_WAITS"] = str(folder / "waits")
        with processes.workers(folder, 1, env=env) as [worker]:
            eventually(lambda: conn.execute("select 1 from llmqueue.idle_worker").fetchall())
            for _ in range(inserts):
                conn.execute("insert into tasks (prompt) values (%s)", (repr(time.time()),))
                time.sleep(GAP_S)
            _until_solved(conn)
            worker.stop()
    return _read(folder / "waits", inserts)


def _to_arrival(inserts: int) -> Waits:
    folder = Path(tempfile.mkdtemp(prefix="llmqueue-bench-"))
    inserted: dict[str, float] = {}
    with embedded_database() as dsn, psycopg.connect(dsn, autocommit=True) as conn:
        _add_models(conn, 6000)
        with processes.backend(folder, "--any-model", "--instant") as url:
            env = processes.environment(DATABASE_URL=dsn, BACKEND_URL=url)
            with processes.workers(folder, 1, env=env) as [worker]:
                eventually(lambda: conn.execute("select 1 from llmqueue.idle_worker").fetchall())
                for number in range(inserts):
                    began_at = time.time()
                    found = conn.execute("insert into tasks (prompt) values (%s) returning id", (f"p{number}",))
                    [key] = found.fetchone() or [None]
                    inserted[f"{key}:0"] = began_at
                    time.sleep(GAP_S)
                _until_solved(conn)
                worker.stop()
    return [call.arrived_at - inserted[call.key or ""] for call in read_calls(folder / "calls.jsonl")]


def _hot(inserts: int) -> Waits:
    folder = Path(tempfile.mkdtemp(prefix="llmqueue-bench-"))
    with embedded_database() as dsn, psycopg.connect(dsn, autocommit=True) as conn:
        _add_models(conn, 600)
        conn.execute("insert into tasks (prompt) select 'p' || n from generate_series(1, 20000) n")
        conn.execute("vacuum analyze tasks")
        env = processes.environment(DATABASE_URL=dsn, BACKEND="bench.noop:waits")
        env["BENCH_WAITS"] = str(folder / "waits")
        with processes.workers(folder, 1, env=env) as [worker]:
            eventually(lambda: conn.execute("select 1 from tasks where status = 'solved' limit 1").fetchall())
            conn.execute("insert into tasks (prompt, priority) select 'first', 100 from generate_series(1, 30)")
            time.sleep(62)
            for _ in range(inserts):
                conn.execute("insert into tasks (prompt, priority) values (%s, 100)", (repr(time.time()),))
                time.sleep(0.1)
            eventually(
                lambda: not conn.execute("select 1 from tasks where priority = 100 and status <> 'solved'").fetchall()
            )
            worker.stop()
    return _read(folder / "waits", inserts)


def _of_peer(peer: peers.Peer, jobs: int) -> Waits:
    with peer.server() as server:
        peer.fill(server.url, 0)
        with workers_of(peer, server.url, 1, verb="wait") as [process]:
            time.sleep(5)
            peer.trickle(server.url, jobs)
            assert process.stdout is not None
            return [float(process.stdout.readline()) for _ in range(jobs)]


def _add_models(conn: Connection, rpm: int) -> None:
    conn.execute(
        "insert into llmqueue.model_config (model, rpm) select 'm' || n, %s from generate_series(1, %s) n",
        (rpm, MODELS),
    )


def _until_solved(conn: Connection) -> None:
    eventually(lambda: not conn.execute("select 1 from tasks where status <> 'solved' limit 1").fetchall())


def _read(file: Path, inserts: int) -> Waits:
    waits = [float(line) for line in file.read_text().split()]
    assert len(waits) == inserts, f"{len(waits)} of {inserts}"
    return waits
