"""Behind PgBouncer in transaction mode: everything except LISTEN works, and a worker detects the pooler (I20)."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict

from llmqueue.db import connect
from llmqueue.fake_backend import expected_answer
from tests.support import processes
from tests.support.eventually import eventually
from tests.support.pgbouncer import Bouncer, bouncer_of
from tests.support.server import Server

pytestmark = pytest.mark.system
Conn = psycopg.Connection[tuple[object, ...]]
TASKS = 200
SESSIONS = """
    select application_name, count(*) from pg_stat_activity
     where datname = current_database() and application_name like 'llmqueue%' group by 1
"""


@contextmanager
def bouncer(server: Server, dsn: str, *, swallows_options: bool = False) -> Iterator[Bouncer]:
    with bouncer_of(server, str(conninfo_to_dict(dsn)["dbname"]), swallows_options=swallows_options) as started:
        yield started


@pytest.fixture
def backlog(conn: Conn) -> Conn:
    conn.execute("insert into llmqueue.model_config (model, rpm) values ('a', 60000)")
    add(conn, TASKS)
    return conn


def add(conn: Conn, how_many: int) -> None:
    conn.execute("insert into tasks (prompt) select 'prompt ' || n from generate_series(1, %s) n", (how_many,))


def said(worker: processes.Process, event: str) -> list[dict[str, object]]:
    lines = [json.loads(line) for line in worker.output.splitlines() if line.startswith("{")]
    return [line for line in lines if line["event"] == event]


def assert_all_solved(conn: Conn, tasks: int) -> None:
    rows = conn.execute("select prompt, answer from tasks where status = 'solved'").fetchall()
    assert len(rows) == tasks
    assert [prompt for prompt, answer in rows if answer != expected_answer(str(prompt))] == []


def solved(conn: Conn) -> int:
    [(count,)] = conn.execute("select count(*) from tasks where status = 'solved'").fetchall()
    return int(str(count))


def test_everything_but_listen_goes_through_it(server: Server, installed: str, backlog: Conn, tmp_path: Path) -> None:
    with bouncer(server, installed) as pool, processes.backend(tmp_path, "--any-model", "--instant") as url:
        env = processes.environment(DATABASE_URL=pool.dsn(), LISTEN_URL=installed, BACKEND_URL=url, LEASE_S="5")
        with processes.workers(tmp_path, 2, env=env) as started:
            eventually(lambda: solved(backlog) == TASKS)
            idle = "select count(*) from llmqueue.idle_worker"
            eventually(lambda: backlog.execute(idle).fetchone() == (2,))
            sessions: dict[Any, Any] = dict(backlog.execute(SESSIONS).fetchall())  # type: ignore[arg-type]
            add(backlog, 20)
            eventually(lambda: solved(backlog) == TASKS + 20)
            assert [process.stop() for process in started] == [0, 0]

    assert_all_solved(backlog, TASKS + 20)
    assert sessions["llmqueue listener"] == 2
    assert int(str(sessions["llmqueue worker"])) <= 4, "the pool's, for both"
    for process in started:
        assert [line["level"] for line in said(process, "pooler_seen")] == ["info"]
        assert [said(process, event) for event in ("database_failed", "listener_lost", "settle_failed")] == [[], [], []]


@pytest.mark.parametrize("swallows_options", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_without_a_way_past_it_a_worker_polls_and_says_so(
    server: Server, installed: str, backlog: Conn, tmp_path: Path, swallows_options: bool
) -> None:
    with (
        bouncer(server, installed, swallows_options=swallows_options) as pool,
        processes.backend(tmp_path, "--any-model", "--instant") as url,
    ):
        env = processes.environment(DATABASE_URL=pool.dsn(), BACKEND_URL=url, LEASE_S="5")
        with processes.workers(tmp_path, 1, env=env) as [worker]:
            eventually(lambda: solved(backlog) == TASKS)
            add(backlog, 20)
            eventually(lambda: solved(backlog) == TASKS + 20)
            assert worker.stop() == 0

    assert_all_solved(backlog, TASKS + 20)
    [line] = said(worker, "pooler_seen")
    assert (line["level"], "LLMQUEUE_LISTEN_URL" in str(line["remedy"])) == ("warning", True)
    assert [said(worker, event) for event in ("database_failed", "listener_lost", "settle_failed")] == [[], [], []]
    assert backlog.execute("select count(*) from llmqueue.idle_worker").fetchone() == (0,)


@pytest.mark.slow
def test_a_listen_url_that_leads_to_a_pooler_too_is_found_deaf_once(
    server: Server, installed: str, backlog: Conn, tmp_path: Path
) -> None:
    with bouncer(server, installed) as pool, processes.backend(tmp_path, "--any-model", "--instant") as url:
        env = processes.environment(DATABASE_URL=pool.dsn(), LISTEN_URL=pool.dsn(), BACKEND_URL=url, LEASE_S="1")
        with processes.workers(tmp_path, 1, env=env) as [worker]:
            eventually(lambda: said(worker, "listener_lost"))
            logins = pool.log.count("login attempt")
            eventually(lambda: pool.log.count("login attempt") >= logins + 3)
            add(backlog, 20)
            eventually(lambda: solved(backlog) == TASKS + 20)
            assert worker.stop() == 0

    [line] = said(worker, "listener_lost")
    assert "pooler" in str(line["error"])
    assert said(worker, "listener_back") == []


def test_a_pooler_is_told_from_a_database(server: Server, installed: str) -> None:
    assert connect.is_pooler(installed) is False
    for swallows_options in (False, True):
        with bouncer(server, installed, swallows_options=swallows_options) as pool:
            assert connect.is_pooler(pool.dsn()) is True
