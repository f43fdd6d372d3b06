"""Sixteen processes on ten models against the real clock, with a window of three seconds so that it turns often."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import psycopg
from psycopg.rows import class_row
from psycopg.types.json import Jsonb

PROCESSES = 16
SECONDS = 8
WINDOW_S, GUARD_S = 3.0, 0.5
# rpm and tpm per window, and of the short windows: seconds -> calls
MODELS: dict[str, tuple[int, int | None, dict[str, int]]] = {
    "a": (3, None, {}),
    "b": (15, None, {}),
    "c": (60, None, {}),
    "d": (240, None, {}),
    "e": (900, None, {}),
    "f": (40, None, {"1": 16}),
    "g": (200, None, {"1": 80, "0.25": 50}),
    "h": (200, 2500, {}),
    "i": (900, 9000, {}),
    "j": (100, 3000, {"1": 40}),
}
ATTEMPTS = """
    select model, extract(epoch from granted_at)::float8 as granted_at, outcome, task_id, fence,
           coalesce(tokens, 0) as tokens, coalesce(tokens_final, tokens, 0) as tokens_final
      from llmqueue.attempt order by fence"""
LEDGER = """
    select model, sum(calls)::bigint, sum(tokens)::bigint from (
        select model, calls, tokens from llmqueue.ledger_cell
        union all
        select model, calls, tokens from llmqueue.ledger_grant g
         where cell = (select max(cell) from llmqueue.ledger_grant last where last.model = g.model)) counted
     group by model"""
TASKS = 20_000
WORKER = Path(__file__).with_name("fleet_worker.py")


@dataclass(frozen=True)
class Row:
    """An attempt, as recorded in the log."""

    model: str
    granted_at: float
    outcome: str | None
    task_id: int
    fence: int
    tokens: int
    tokens_final: int


def run_fleet(dsn: str) -> list[dict[str, int]]:
    """Runs the processes, which start together; returns what each saw."""
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


def worst_window(charged: Iterable[tuple[float, int]], span_s: float) -> int:
    """The most in any half-open window of that length; charged: (when, how much)."""
    ordered = sorted(charged)
    first = sum_now = worst = 0
    for at, amount in ordered:
        sum_now += amount
        while ordered[first][0] <= at - span_s:
            sum_now -= ordered[first][1]
            first += 1
        worst = max(worst, sum_now)
    return worst


def worst_windows(attempts: Iterable[Row]) -> list[str]:
    """Returns the worst use of each limit as `model limit: used of limit`, with a `!` if the limit was exceeded."""
    # A grant that was given back may have been so before the one after it. What an answer has put right may have been
    # right by then: the less of both was charged for sure.
    charged = [row for row in attempts if row.outcome != "released"]
    found = []
    for model, (rpm, tpm, short) in MODELS.items():
        mine = [row for row in charged if row.model == model]
        calls = [(row.granted_at, 1) for row in mine]
        tokens = [(row.granted_at, min(row.tokens, row.tokens_final)) for row in mine]
        used = {"rpm": (worst_window(calls, WINDOW_S + GUARD_S), rpm)}
        used |= {f"{s} s": (worst_window(calls, float(s) + GUARD_S), most) for s, most in short.items()}
        used |= {"tpm": (worst_window(tokens, WINDOW_S + GUARD_S), tpm)} if tpm else {}
        found += [f"{model} {name}: {n} of {most}{' !' * (n > most)}" for name, (n, most) in used.items()]
    return found


def test_a_fleet_never_exceeds_a_limit_and_loses_or_doubles_nothing(
    conn: psycopg.Connection[tuple[object, ...]], installed: str
) -> None:
    conn.execute("update llmqueue.limiter set window_s = %s, guard_s = %s", (WINDOW_S, GUARD_S))
    for model, (rpm, tpm, short) in MODELS.items():
        shares = Jsonb({seconds: calls / rpm for seconds, calls in short.items()}) if short else None
        conn.execute(
            "insert into llmqueue.model_config (model, rpm, tpm, token_mode, burst_windows) "
            "values (%s, %s, %s, 'input', %s)",
            (model, rpm, tpm, shares),
        )
    conn.execute(
        "insert into tasks (prompt, priority, max_attempts, user_id) "
        "select repeat('x', 1 + n %% 400), case when n %% 40 = 0 then 100 else n %% 3 end, 1000, 'user ' || n %% 7 "
        "  from generate_series(1, %s) n",
        (TASKS,),
    )
    conn.execute("analyze tasks")

    seen = Counter[str]()
    for one in run_fleet(installed):
        seen.update(one)

    with conn.cursor(row_factory=class_row(Row)) as cursor:
        attempts = cursor.execute(ATTEMPTS).fetchall()
    worst = worst_windows(attempts)
    print(f"worst windows {worst},", dict(sorted(seen.items())))
    assert [one for one in worst if "!" in one] == []

    assert len(attempts) == seen["claimed"], "every attempt was told to exactly one process"
    assert seen["settled unknown"] == 0
    assert seen["settled late"] == 0
    outcomes = Counter(row.outcome for row in attempts)
    assert outcomes["completed"] == seen["settled completed"] > 0

    check_tasks(conn, attempts)
    kept = [row for row in attempts if row.outcome != "released"]
    calls, tokens = Counter(row.model for row in kept), Counter[str]()
    for row in kept:
        tokens[row.model] += row.tokens_final
    ledger = {model: (sums[0], sums[1]) for model, *sums in conn.execute(LEDGER).fetchall()}
    assert ledger == {model: (calls[model], tokens[model]) for model in calls}, "granted, not given back, put right"


def check_tasks(conn: psycopg.Connection[tuple[object, ...]], attempts: Iterable[Row]) -> None:
    """Checks that the state of each task matches its attempts."""
    by_task: dict[object, list[Row]] = {}
    for row in attempts:
        by_task.setdefault(row.task_id, []).append(row)
    tasks = conn.execute("select id, status, attempts, fence, answer from tasks where fence is not null").fetchall()
    assert len(tasks) == len(by_task)
    for key, status, counted, fence, answer in tasks:
        outcomes = [row.outcome for row in by_task[key]]
        assert fence == by_task[key][-1].fence
        assert counted == len(outcomes) - outcomes.count("released")
        assert outcomes.count("completed") == (status == "solved")
        assert outcomes.count(None) == (status == "running")
        assert answer == (f"answer {fence}" if status == "solved" else None)
