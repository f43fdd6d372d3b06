"""Eight processes on five models against the real clock, with a window of three seconds so that it turns often."""

from __future__ import annotations

import json
import subprocess
import sys
from bisect import bisect_right
from collections import Counter
from pathlib import Path

import psycopg

PROCESSES = 8
SECONDS = 10
WINDOW_S, GUARD_S = 3.0, 0.5
RPMS = {"a": 3, "b": 15, "c": 60, "d": 240, "e": 900}  # per window
LEDGER = """
    select model, sum(calls) from (
        select model, calls from llmqueue.ledger_cell
        union all
        select model, calls from llmqueue.ledger_grant g
         where cell = (select max(cell) from llmqueue.ledger_grant last where last.model = g.model)) counted
     group by model"""
WORKER = Path(__file__).with_name("fleet_worker.py")


def run_fleet(dsn: str) -> list[dict[str, int]]:
    """What each process saw; all start together."""
    command = [sys.executable, str(WORKER), dsn]
    started = [
        subprocess.Popen([*command, str(seed), str(SECONDS)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for seed in range(PROCESSES)
    ]
    try:
        for process in started:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
        for process in started:
            assert process.stdin is not None
            process.stdin.write("go\n")
            process.stdin.flush()
        return [json.loads(process.communicate(timeout=SECONDS + 60)[0]) for process in started]
    finally:
        for process in started:
            process.kill()
            process.wait()


def worst_window(granted_at: list[float], span_s: float) -> int:
    """The most calls in any half-open window of that length."""
    ordered = sorted(granted_at)
    return max((bisect_right(ordered, at) - bisect_right(ordered, at - span_s) for at in ordered), default=0)


def test_a_fleet_never_exceeds_a_limit_and_loses_or_doubles_nothing(
    conn: psycopg.Connection[tuple[object, ...]], installed: str
) -> None:
    conn.execute("update llmqueue.limiter set window_s = %s, guard_s = %s", (WINDOW_S, GUARD_S))
    for model, rpm in RPMS.items():
        conn.execute("insert into llmqueue.model_config (model, rpm) values (%s, %s)", (model, rpm))
    conn.execute(
        "insert into tasks (prompt, priority, max_attempts) select 'why?', n % 3, 1000 from generate_series(1, 20000) n"
    )
    conn.execute("analyze tasks")

    seen = Counter[str]()
    for one in run_fleet(installed):
        seen.update(one)

    attempts = conn.execute(
        "select model, extract(epoch from granted_at)::float8, outcome, task_id, attempt_no, fence "
        "from llmqueue.attempt"
    ).fetchall()
    # Every grant that was not given back counts, and so do those whose refund came later than the grant after it.
    worst = {
        model: worst_window(
            [float(row[1]) for row in attempts if row[0] == model and row[2] != "released"], WINDOW_S + GUARD_S
        )
        for model in RPMS
    }
    granted = Counter(row[0] for row in attempts if row[2] != "released")
    print(f"worst windows {worst}, granted {dict(granted)},", dict(sorted(seen.items())))
    assert all(worst[model] <= rpm for model, rpm in RPMS.items()), worst
    # How much of a quota is used is measured in bench/; here every model was at work for a window and more.
    assert all(granted[model] > rpm for model, rpm in RPMS.items()), granted

    assert len(attempts) == seen["claimed"], "every attempt was told to exactly one process"
    assert seen["settled unknown"] == 0
    assert seen["settled late"] == 0
    outcomes = Counter(row[2] for row in attempts)
    assert outcomes["completed"] == seen["settled completed"]

    by_task: dict[object, list[tuple[object, ...]]] = {}
    for row in sorted(attempts, key=lambda row: int(str(row[5]))):
        by_task.setdefault(row[3], []).append(row)
    tasks = conn.execute("select id, status, attempts, fence, answer from tasks where fence is not null").fetchall()
    assert len(tasks) == len(by_task)
    for key, status, counted, fence, answer in tasks:
        mine = by_task[key]
        assert fence == mine[-1][5]
        assert counted == sum(row[2] != "released" for row in mine)
        assert [row[2] for row in mine].count("completed") == (status == "solved")
        assert [row[2] for row in mine].count(None) == (status == "running")
        assert answer == (f"answer {fence}" if status == "solved" else None)

    ledger = dict(conn.execute(LEDGER).fetchall())
    charged = Counter(row[0] for row in attempts if row[2] != "released")
    assert ledger == charged, "the ledger's sum is what was granted and not given back"
