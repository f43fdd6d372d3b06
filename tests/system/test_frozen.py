"""Workers frozen (SIGSTOP) at chosen points: the fleet continues, and a thawed worker sends nothing late."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import psycopg
import pytest

from llmqueue.fake_backend import expected_answer
from llmqueue.fake_backend.call_log import read_calls
from tests.support import processes
from tests.support.eventually import eventually
from tests.support.frozen_worker import POINTS
from tests.support.processes import Process
from tests.support.releases import ROOT

pytestmark = pytest.mark.system

LEASE_S = "3"
TASKS = 3
# By what may have left the worker: a claim, a connection, nothing of the call, an end.
QUICK = (
    "claim sent, answer not read",
    "connected, nothing sent",
    "before the first byte",
    "settle sent, answer not read",
)
SLOW = tuple(point for point in POINTS if point not in QUICK)
SENT = ("sent", "answered, not settled", "settle sent, answer not read", "settled")


def start_frozen(folder: Path, number: int, point: str, env: dict[str, str]) -> Process:
    out_path, marker = folder / f"frozen{number}.out", folder / f"frozen{number}"
    command = [sys.executable, "-m", "tests.support.frozen_worker", point, str(marker)]
    with out_path.open("wb") as out:
        popen = subprocess.Popen(
            [*command, "--model", model_of(number), "--concurrency", str(TASKS)],
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
            env=env,
            cwd=ROOT,
        )
    return Process(popen, out_path)


def model_of(number: int) -> str:
    return f"m{number}"


def is_stopped(process: Process) -> bool:
    return Path(f"/proc/{process.popen.pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "T"


def add_tasks(conn: psycopg.Connection[Any], number: int, how_many: int) -> list[int]:
    query = "insert into tasks (prompt, model) select 'prompt ' || n, %s from generate_series(1, %s) n returning id"
    return [key for (key,) in conn.execute(query, (model_of(number), how_many)).fetchall()]


def count(conn: psycopg.Connection[Any], query: str, *args: object) -> Any:
    (found,) = conn.execute(query.encode(), args or None).fetchone() or (None,)
    return found


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="whether a process is stopped is read from /proc")
@pytest.mark.parametrize("points", [QUICK, pytest.param(SLOW, marks=pytest.mark.slow)], ids=["quick", "slow"])
def test_the_fleet_goes_on_beside_frozen_workers_which_send_nothing_late(
    installed: str, conn: psycopg.Connection[Any], tmp_path: Path, points: tuple[str, ...]
) -> None:
    numbers = range(len(points))
    for number in numbers:
        conn.execute("insert into llmqueue.model_config (model, rpm) values (%s, 6000)", (model_of(number),))
        add_tasks(conn, number, TASKS)
    frozen: list[Process] = []
    with processes.backend(tmp_path, "--any-model", "--speed", "50") as url:
        env = processes.environment(DATABASE_URL=installed, BACKEND_URL=url, LEASE_S=LEASE_S)
        try:
            frozen += [start_frozen(tmp_path, number, point, env) for number, point in enumerate(points)]
            for process in frozen:
                eventually(lambda process=process: is_stopped(process))  # type: ignore[misc]
            with processes.workers(tmp_path, 1, env=env) as [healthy]:
                the_fleet_goes_on(conn, healthy, numbers)
                assert all(is_stopped(process) for process in frozen)
                assert healthy.stop() == 0
            late = thaw(conn, tmp_path, frozen)
        finally:
            for process in frozen:
                process.stop(signal.SIGKILL)

    assert late == {}, "calls after the thaw other than those of new tasks"
    calls = Counter(call.model for call in read_calls(tmp_path / "calls.jsonl"))
    for number, point in enumerate(points):
        model = model_of(number)
        again = calls[model] - count(conn, "select count(*) from tasks where model = %s", model)
        # a call whose answer had not reached the database is made again; what was never sent is sent once
        assert 0 <= again <= (TASKS if point in SENT else 0), point
    rows = conn.execute("select prompt, answer from tasks").fetchall()
    assert [prompt for prompt, answer in rows if answer != expected_answer(prompt)] == []
    ends = "select max(n) from (select count(*) n from llmqueue.attempt where outcome = 'completed' group by task_id) t"
    assert count(conn, ends) == 1
    assert count(conn, "select count(*) from llmqueue.attempt where outcome is null") == 0


def the_fleet_goes_on(conn: psycopg.Connection[Any], healthy: Process, numbers: range) -> None:
    """Grants are made on each model at once, and when the lease is over the rest is done too."""
    name = f"%:{healthy.popen.pid}"
    eventually(lambda: count(conn, "select count(*) from llmqueue.worker where name like %s", name))
    waited_s = []
    for number in numbers:
        keys = add_tasks(conn, number, 5)
        granted = "select count(distinct task_id) from llmqueue.attempt where task_id = any (%s)"
        eventually(lambda keys=keys, granted=granted: count(conn, granted, keys) == 5)  # type: ignore[misc]
        waited = "select extract(epoch from max(a.granted_at - t.created_at))::float8 from llmqueue.attempt a "
        waited_s.append(count(conn, waited + "join tasks t on t.id = a.task_id where t.id = any (%s)", keys))
    print(f"\ngranted on a frozen worker's model after {max(waited_s):.3f} s at most")
    assert max(waited_s) < 10, "under 1 on a machine that has time"
    eventually(lambda: count(conn, "select count(*) from tasks where status <> 'solved'") == 0)
    open_transactions = (
        "select count(*) from pg_stat_activity where datname = current_database() and state like 'idle in%'"
    )
    eventually(lambda: count(conn, open_transactions) == 0)


def thaw(conn: psycopg.Connection[Any], folder: Path, frozen: list[Process]) -> dict[str, int]:
    """Let them go on until each has done new tasks and ended; return the calls that are not for those."""
    thawed_at = time.time()
    for process in frozen:
        os.kill(process.popen.pid, signal.SIGCONT)
    new = {str(key) for number in range(len(frozen)) for key in add_tasks(conn, number, 2)}
    eventually(lambda: count(conn, "select count(*) from tasks where status <> 'solved'") == 0, timeout_s=120)
    for process in frozen:
        assert process.stop() == 0, process.output[-3000:]
    calls = [call for call in read_calls(folder / "calls.jsonl") if call.arrived_at > thawed_at]
    return dict(Counter(str(call.key) for call in calls if str(call.key).split(":")[0] not in new))
