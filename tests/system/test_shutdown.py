"""SIGTERM at several moments under load: unsent tasks are returned, sent calls are awaited, the exit code is 0."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import psycopg
import pytest

from llmqueue.fake_backend import expected_answer
from llmqueue.fake_backend.call_log import read_calls
from tests.support import processes
from tests.support.eventually import eventually

pytestmark = pytest.mark.system

DRAIN_S = 1.0
SENT = (
    "select count(*) from llmqueue.attempt where ended_at is null and granted_at < clock_timestamp() - interval '3 s'"
)
# a settle and a farewell follow the drain, each with a deadline of its own; the rest is for a busy machine
LONGEST_S = DRAIN_S + 10 + 5 + 30


def set_up(conn: psycopg.Connection[Any], tasks: int, prompt: str = "prompt ") -> None:
    conn.execute("insert into llmqueue.model_config (model, rpm) values ('a', 60000)")
    conn.execute("insert into tasks (prompt) select %s || n from generate_series(1, %s) n", (prompt, tasks))


def count(conn: psycopg.Connection[Any], query: str) -> int:
    (found,) = conn.execute(query.encode()).fetchone() or (0,)
    return int(found)


def outcomes(conn: psycopg.Connection[Any]) -> dict[tuple[str, str | None], int]:
    query = "select outcome, error_class, count(*) from llmqueue.attempt group by 1, 2"
    return {(outcome, error_class): n for outcome, error_class, n in conn.execute(query).fetchall()}


def refunds(conn: psycopg.Connection[Any]) -> list[tuple[int, int]]:
    return conn.execute(
        "select cell, -sum(calls)::integer from llmqueue.ledger_cell where calls < 0 group by 1 order by 1"
    ).fetchall()


def released(conn: psycopg.Connection[Any]) -> list[tuple[int, int]]:
    return conn.execute(
        "select cell, count(*)::integer from llmqueue.attempt where outcome = 'released' group by 1 order by 1"
    ).fetchall()


def attempts_of_tasks(conn: psycopg.Connection[Any]) -> int:
    return count(conn, "select sum(attempts) from tasks")


@contextmanager
def unaccepting_backend() -> Iterator[int]:
    """A port that answers the worker's first probe and takes no other connection: each goes on connecting."""
    with ExitStack() as stack:
        listener = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=0))

        def answer_the_probe() -> None:
            with listener.accept()[0] as probe:
                for _ in range(8):  # these fill the queue of those that wait to be accepted
                    waiting = stack.enter_context(socket.socket())
                    waiting.setblocking(False)
                    waiting.connect_ex(listener.getsockname())
                probe.recv(65_536)
                probe.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")

        thread = threading.Thread(target=answer_the_probe)
        thread.start()
        yield listener.getsockname()[1]
        thread.join(10)


@contextmanager
def held(dsn: str, statement: str) -> Iterator[psycopg.Connection[Any]]:
    with psycopg.connect(dsn) as holder:
        holder.execute(statement.encode())
        yield holder


def wait_until_waiting(conn: psycopg.Connection[Any], function: str) -> None:
    query = (
        "select count(*) from pg_stat_activity where datname = current_database() and wait_event_type = 'Lock' "
        f"and query like '%llmqueue.{function}(%'"
    )
    eventually(lambda: count(conn, query) > 0)


def test_calls_that_are_still_connecting_go_back_with_their_grant_and_attempt(
    installed: str, conn: psycopg.Connection[Any], tmp_path: Path
) -> None:
    set_up(conn, 40)
    with unaccepting_backend() as port:
        env = processes.environment(
            DATABASE_URL=installed, BACKEND_URL=f"http://127.0.0.1:{port}", DRAIN_S=str(DRAIN_S), CONCURRENCY="40"
        )
        with processes.workers(tmp_path, 1, env=env) as [worker]:
            eventually(lambda: count(conn, "select count(*) from tasks where status = 'running'") > 20)
            began_at = time.monotonic()
            assert worker.stop(timeout_s=120) == 0, worker.output[-3000:]
            took_s = time.monotonic() - began_at

    print(f"\nSIGTERM with 40 calls connecting and DRAIN_S {DRAIN_S:g}: ended after {took_s:.1f} s")
    assert took_s < LONGEST_S
    assert count(conn, "select count(*) from tasks where status = 'unsolved' and attempts = 0") == 40
    assert {outcome for outcome, _ in outcomes(conn)} == {"released"}
    assert outcomes(conn).get(("released", "worker_stopped"), 0) > 0, "some were unsent at the stop itself"
    assert refunds(conn) == released(conn), "each refunded once, to its own cell"
    assert count(conn, "select count(*) from llmqueue.worker") == 0


@pytest.mark.slow
def test_calls_that_were_sent_and_not_answered_in_time_stay_charged_and_count(
    installed: str, conn: psycopg.Connection[Any], tmp_path: Path
) -> None:
    set_up(conn, 5, prompt="[[fault:hang]] ")
    with processes.backend(tmp_path, "--any-model", "--instant") as url:
        env = processes.environment(DATABASE_URL=installed, BACKEND_URL=url, DRAIN_S=str(DRAIN_S))
        with processes.workers(tmp_path, 1, env=env) as [worker]:
            # what could not be sent within the guard has gone back long before
            eventually(lambda: count(conn, SENT) == 5)
            began_at = time.monotonic()
            assert worker.stop(timeout_s=120) == 0, worker.output[-3000:]
            took_s = time.monotonic() - began_at

    print(f"\nSIGTERM with 5 calls without an answer and DRAIN_S {DRAIN_S:g}: ended after {took_s:.1f} s")
    assert took_s < LONGEST_S
    found = outcomes(conn)
    assert {outcome for outcome, _ in found} <= {"retried", "released"}
    assert found["retried", "worker_stopped"] == attempts_of_tasks(conn) > 0
    assert refunds(conn) == released(conn)


def test_a_claim_that_is_under_way_is_waited_for_and_its_tasks_are_not_forgotten(
    installed: str, conn: psycopg.Connection[Any], tmp_path: Path
) -> None:
    set_up(conn, 40)
    with processes.backend(tmp_path, "--any-model", "--instant") as url:
        env = processes.environment(DATABASE_URL=installed, BACKEND_URL=url)
        # A claim has charged when it comes to write its attempts: the grant will be old when the answer is there.
        with (
            held(installed, "lock table llmqueue.attempt in exclusive mode") as holder,
            processes.workers(tmp_path, 1, env=env) as [worker],
        ):
            wait_until_waiting(conn, "claim")
            worker.popen.terminate()
            holder.commit()
            assert worker.wait(120) == 0, worker.output[-3000:]

    found = outcomes(conn)
    assert sum(found.values()) > 0, "the claim was answered"
    assert {outcome for outcome, _ in found} <= {"completed", "released"}
    assert count(conn, "select count(*) from tasks where status = 'running'") == 0
    assert refunds(conn) == released(conn)
    assert attempts_of_tasks(conn) == len(read_calls(tmp_path / "calls.jsonl"))


def test_answers_whose_settle_is_under_way_are_written_once(
    installed: str, conn: psycopg.Connection[Any], tmp_path: Path
) -> None:
    set_up(conn, 40)
    with processes.backend(tmp_path, "--any-model", "--speed", "10") as url:
        env = processes.environment(DATABASE_URL=installed, BACKEND_URL=url)
        with processes.workers(tmp_path, 1, env=env) as [worker]:
            eventually(lambda: read_calls(tmp_path / "calls.jsonl"))
            with held(installed, "lock table llmqueue.attempt in exclusive mode") as holder:
                wait_until_waiting(conn, "settle")
                worker.popen.terminate()
                eventually(lambda: '"worker_stopping"' in worker.output)
                holder.commit()
                assert worker.wait(120) == 0, worker.output[-3000:]

    rows = conn.execute("select prompt, answer, attempts from tasks where status = 'solved'").fetchall()
    calls = read_calls(tmp_path / "calls.jsonl")
    assert [row for row in rows if row[1:] != (expected_answer(row[0]), 1)] == []
    assert 0 < len(rows) == len(calls)
    assert count(conn, "select count(*) from tasks where status = 'running'") == 0
    assert refunds(conn) == released(conn)


@pytest.mark.slow
def test_a_stop_under_load_gives_back_what_was_not_sent(
    installed: str, conn: psycopg.Connection[Any], tmp_path: Path
) -> None:
    set_up(conn, 2000)
    with processes.backend(tmp_path, "--any-model", "--speed", "5") as url:
        env = processes.environment(DATABASE_URL=installed, BACKEND_URL=url, CONCURRENCY="300", DRAIN_S="60")
        with processes.workers(tmp_path, 1, env=env) as [worker]:
            eventually(lambda: count(conn, "select count(*) from tasks where status = 'solved'") > 20)
            assert worker.stop(timeout_s=120) == 0, worker.output[-3000:]

    calls = read_calls(tmp_path / "calls.jsonl")
    found = outcomes(conn)
    assert {outcome for outcome, _ in found} <= {"completed", "released"}
    assert found["completed", None] == len(calls) == attempts_of_tasks(conn)
    assert count(conn, "select count(*) from tasks where status not in ('unsolved', 'solved')") == 0
    assert refunds(conn) == released(conn)
