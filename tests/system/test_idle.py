"""An idle worker: the time from an INSERT to the backend, and the cost of waiting for Postgres."""

from __future__ import annotations

import os
import re
import statistics
import time
from pathlib import Path
from typing import Any

import psycopg
import pytest

from llmqueue.fake_backend.call_log import read_calls
from tests.support import processes
from tests.support.eventually import eventually
from tests.support.server import Server

INSERTS = int(os.environ.get("LLMQUEUE_TEST_INSERTS", "500"))
IDLE_S = 30


def _statements(server: Server, conn: psycopg.Connection) -> list[str]:
    """What the worker has asked so far, by the server's own log."""
    return re.findall(rf"db={conn.info.dbname} app=llmqueue \w+: LOG:  (?:execute|statement)[^\n]*", server.log)


@pytest.mark.slow
def test_an_insert_reaches_the_backend_at_once(installed: str, conn: psycopg.Connection, tmp_path: Path) -> None:
    for number in range(10):
        conn.execute("insert into llmqueue.model_config (model, rpm) values (%s, 6000)", (f"model{number}",))
    inserted: dict[str, float] = {}
    with processes.backend(tmp_path, "--any-model", "--instant") as url:
        env = processes.environment(DATABASE_URL=installed, BACKEND_URL=url)
        with processes.workers(tmp_path, 1, env=env) as [worker]:
            eventually(lambda: conn.execute("select count(*) from llmqueue.idle_worker").fetchone()[0] == 1)
            for number in range(INSERTS):
                started_at = time.time()
                [task_id] = conn.execute(
                    "insert into tasks (prompt) values (%s) returning id", (f"p{number}",)
                ).fetchone()
                inserted[f"{task_id}:0"] = started_at
                time.sleep(0.02)
            eventually(
                lambda: conn.execute("select count(*) from tasks where status = 'solved'").fetchone()[0] == INSERTS
            )
            assert worker.stop() == 0
    waits_ms = sorted((call.arrived_at - inserted[call.key]) * 1000 for call in read_calls(tmp_path / "calls.jsonl"))
    assert len(waits_ms) == INSERTS
    p99 = waits_ms[int(0.99 * len(waits_ms)) - 1]
    p50 = statistics.median(waits_ms)
    print(f"\ninsert begun → arrival, {INSERTS}: p50 {p50:.1f} ms, p99 {p99:.1f} ms, max {waits_ms[-1]:.1f} ms")


@pytest.mark.slow
def test_an_idle_worker_asks_once_a_second(
    server: Server, installed: str, conn: psycopg.Connection, tmp_path: Path
) -> None:
    conn.execute(
        "insert into llmqueue.model_config (model, rpm) select 'model' || n, 600 from generate_series(1, 10) n"
    )
    conn.execute(f"alter database {conn.info.dbname} set log_statement = 'all'")
    with processes.backend(tmp_path, "--any-model", "--instant") as url:
        env = processes.environment(DATABASE_URL=installed, BACKEND_URL=url)
        with processes.workers(tmp_path, 1, env=env) as [worker]:
            eventually(lambda: conn.execute("select count(*) from llmqueue.idle_worker").fetchone()[0] == 1)
            time.sleep(3)
            before, began_at = len(_statements(server, conn)), time.monotonic()
            time.sleep(IDLE_S)
            asked, took_s = len(_statements(server, conn)) - before, time.monotonic() - began_at
            connections: dict[Any, Any] = dict(
                conn.execute(
                    """select application_name, count(*) from pg_stat_activity
                        where datname = current_database() and application_name like 'llmqueue%' group by 1"""
                ).fetchall()
            )
            assert worker.stop() == 0
    print(f"\nidle: {asked} statements in {took_s:.1f} s = {asked / took_s:.2f}/s; connections {connections}")
    assert asked <= took_s + 1
    assert sum(connections.values()) <= 2
