"""Limits changed under a running worker: the first grant after the COMMIT obeys, and the first call comes at once.

How soon is measured and printed, not asserted: it is the machine's as much as ours.
"""

from __future__ import annotations

import random
import time
from dataclasses import dataclass
from datetime import datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

import psycopg
import pytest

from llmqueue.fake_backend.call_log import read_calls
from tests.support import processes
from tests.support.eventually import eventually

pytestmark = pytest.mark.system

LOW, HIGH = 1, 60_000
TASKS = 3  # of each raise


@dataclass(frozen=True)
class Change:
    """A limit's new value: `before` is this process's time before the UPDATE, `committed_at` the database's after."""

    rpm: int
    before: float
    committed_at: datetime


def set_rpm(conn: psycopg.Connection[Any], rpm: int) -> Change:
    before = time.time()
    conn.execute("update llmqueue.model_config set rpm = %s", (rpm,))
    row = conn.execute("select clock_timestamp()").fetchone()
    assert row is not None
    return Change(rpm, before, row[0])


def solved(conn: psycopg.Connection[Any]) -> int:
    row = conn.execute("select count(*) from tasks where status = 'solved'").fetchone()
    assert row is not None
    return int(row[0])


def raise_and_lower(conn: psycopg.Connection[Any], times: int) -> list[Change]:
    """Holds tasks back by a low limit, then lifts it, again and again."""
    rng = random.Random(5)
    changes = []
    for n in range(times):
        changes.append(set_rpm(conn, LOW))
        conn.execute("insert into tasks (prompt) select 'why?' from generate_series(1, %s)", (TASKS,))
        time.sleep(rng.uniform(0.15, 0.45))  # at any moment between two polls
        changes.append(set_rpm(conn, HIGH))
        eventually(lambda due=(n + 1) * TASKS: solved(conn) >= due)  # type: ignore[misc]
    return changes


def judged_by(conn: psycopg.Connection[Any], changes: list[Change]) -> list[tuple[int, set[int]]]:
    """For each change: its limit, and the limits that the grants from its COMMIT to the next UPDATE were judged by."""
    query = "select distinct rpm from llmqueue.attempt where granted_at > %s and granted_at < %s"
    found = []
    for change, following in pairwise(changes):
        until = datetime.fromtimestamp(following.before, tz=following.committed_at.tzinfo)
        rows = conn.execute(query, (change.committed_at, until)).fetchall()
        found.append((change.rpm, {int(row[0]) for row in rows}))
    return found


def first_calls_s(folder: Path, changes: list[Change]) -> list[float]:
    """From each raise to the first call that arrived after it."""
    arrivals = sorted(call.arrived_at for call in read_calls(folder / "calls.jsonl"))
    return sorted(
        next(at for at in arrivals if at > change.before) - change.before for change in changes if change.rpm == HIGH
    )


@pytest.mark.parametrize(
    ("times", "workers"),
    [(25, 1), pytest.param(200, 1, marks=pytest.mark.slow), pytest.param(100, 3, marks=pytest.mark.slow)],
)
def test_the_first_grant_after_the_commit_of_a_raised_limit_obeys_it(
    installed: str, conn: psycopg.Connection[Any], tmp_path: Path, times: int, workers: int
) -> None:
    conn.execute("insert into llmqueue.model_config (model, rpm) values ('a', %s)", (LOW,))
    with processes.backend(tmp_path, "--any-model", "--instant") as url:
        env = processes.environment(DATABASE_URL=installed, BACKEND_URL=url)
        with processes.workers(tmp_path, workers, env=env) as started:
            conn.execute("insert into tasks (prompt) values ('the first'), ('and the one that waits')")
            eventually(lambda: solved(conn) >= 1)
            changes = raise_and_lower(conn, times)
            eventually(lambda: solved(conn) >= times * TASKS + 2)
            assert [process.stop() for process in started] == [0] * workers

    waits = first_calls_s(tmp_path, changes)
    p50, p99 = waits[len(waits) // 2], waits[int(0.99 * (len(waits) - 1))]
    print(
        f"\n{workers} workers, {len(waits)} raises: from before the UPDATE to the first call at the backend "
        f"p50 {p50 * 1000:.0f} ms, p99 {p99 * 1000:.0f} ms, longest {waits[-1] * 1000:.0f} ms"
    )
    for rpm, judged in judged_by(conn, changes):
        assert judged <= {rpm}


def test_a_lowered_limit_and_a_pause_hold_from_the_commit_on(
    installed: str, conn: psycopg.Connection[Any], tmp_path: Path
) -> None:
    conn.execute("insert into llmqueue.model_config (model, rpm) values ('a', 3000)")
    conn.execute("insert into tasks (prompt) select 'why?' from generate_series(1, 3000)")
    with processes.backend(tmp_path, "--any-model", "--instant") as url:
        env = processes.environment(DATABASE_URL=installed, BACKEND_URL=url)
        with processes.workers(tmp_path, 2, env=env) as started:
            changes = []
            for rpm in (60, 0, 60):
                changes.append(set_rpm(conn, 3000))
                due = solved(conn) + 80
                eventually(lambda due=due: solved(conn) >= due)  # type: ignore[misc]
                changes.append(set_rpm(conn, rpm))
                time.sleep(0.5)
            changes.append(set_rpm(conn, 0))
            assert [process.stop() for process in started] == [0, 0]

    for rpm, judged in judged_by(conn, changes):
        assert judged == ({rpm} if rpm == 3000 else set()), f"grants at {rpm} by {judged}"
