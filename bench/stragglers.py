"""The share of the slots' time that is spent on prompts while some calls take 64 times as long as most."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import psycopg

from bench.parts import prose, spread, table
from bench.today import BATCH, WORKERS
from bench.world import embedded_database
from llmqueue.fake_backend.call_log import LoggedCall, read_calls
from tests.support import processes

MODEL = "together-llama-2-13b"  # two of its 149 measured calls took 64 times the median
SLOTS = WORKERS * BATCH
WARM_UP_S = 10.0


def stragglers(_dsn: str, quick: bool) -> str:
    """Measures both with the same slots and with more tasks than they can do."""
    seconds, rounds = (15, 1) if quick else (60, 3)
    ways: dict[str, Callable[[str, str, Path, float], None]] = {
        "llmqueue, a call each": _ours,
        f"today's process, batches of {BATCH}": _today,
    }
    results: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, run in ways.items():
            results[name].append(_busy(run, seconds))
            print(f"{name}: {results[name][-1]}", flush=True)
    rows = [
        (name, spread([busy for busy, _ in found]), spread([rate for _, rate in found], 1))
        for name, found in results.items()
    ]
    head = ("", "share of the slots' time spent on prompts", "answers/s")
    about = f"""{SLOTS} slots, latencies of {MODEL}, more tasks than can be done, {seconds} s after the first
        {WARM_UP_S:.0f} s, from the backend's log. 1 means that every slot always has a prompt in progress. A batch
        holds its slots until its slowest prompt is answered."""
    return f"## Stragglers\n\n{prose(about)}\n\n{table(head, rows)}"


def _busy(run: Callable[[str, str, Path, float], None], seconds: float) -> tuple[float, float]:
    """Returns the share of the slots' time that was spent on prompts, and answers per second."""
    folder = Path(tempfile.mkdtemp(prefix="llmqueue-bench-"))
    with embedded_database() as dsn:
        with psycopg.connect(dsn, autocommit=True) as conn:
            conn.execute("insert into llmqueue.model_config (model, rpm) values (%s, 6000000)", (MODEL,))
            conn.execute(
                "insert into tasks (prompt, model) select 'p' || n, %s from generate_series(1, 30000) n", (MODEL,)
            )
            conn.execute("vacuum analyze tasks")
        with processes.backend(folder) as url:
            run(dsn, url, folder, WARM_UP_S + seconds)
    calls = read_calls(folder / "calls.jsonl")
    began_at = min(call.arrived_at for call in calls) + WARM_UP_S
    return _within(calls, began_at, began_at + seconds)


def _within(calls: Sequence[LoggedCall], began_at: float, until: float) -> tuple[float, float]:
    spent_s = sum(
        max(0.0, min(until, call.finished_at or until) - max(began_at, call.arrived_at))
        for call in calls
        if call.arrived_at < until
    )
    answers = sum(began_at <= call.finished_at < until for call in calls if call.finished_at)
    return spent_s / (SLOTS * (until - began_at)), answers / (until - began_at)


def _ours(dsn: str, url: str, folder: Path, seconds: float) -> None:
    # a tenth of a worker's slots is reserved for hot tasks
    env = processes.environment(DATABASE_URL=dsn, BACKEND_URL=url, CONCURRENCY=str(SLOTS * 10 // 9), DRAIN_S="0")
    with processes.workers(folder, 1, env=env) as [worker]:
        _wait_for_first(folder, seconds)
        worker.stop()


def _today(dsn: str, url: str, folder: Path, seconds: float) -> None:
    today = subprocess.Popen([sys.executable, "-m", "bench.today", dsn, url, MODEL])
    try:
        _wait_for_first(folder, seconds)
    finally:
        today.kill()
        today.wait()


def _wait_for_first(folder: Path, seconds: float) -> None:
    """Waits until `seconds` have passed since the first answer."""
    log = folder / "calls.jsonl"
    while not log.exists() or log.stat().st_size == 0:
        time.sleep(0.05)
    time.sleep(seconds)
