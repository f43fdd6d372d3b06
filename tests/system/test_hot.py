"""Hot tasks do not wait for cold ones to end: slots of the worker and of the model are reserved for them (I13)."""

from __future__ import annotations

from pathlib import Path

import psycopg
import pytest

from tests.support import processes
from tests.support.eventually import eventually

pytestmark = pytest.mark.system

Conn = psycopg.Connection[tuple[object, ...]]


def running(conn: Conn) -> object:
    row = conn.execute("select count(*) from tasks where status = 'running'").fetchone()
    return row and row[0]


@pytest.mark.parametrize(("slots", "max_concurrency", "kept"), [(2, None, 1), (20, None, 2), (50, 3, 1), (50, 2, 1)])
def test_a_hot_task_is_answered_while_calls_that_never_end_hold_all_other_slots(
    slots: int, max_concurrency: int | None, kept: int, installed: str, conn: Conn, tmp_path: Path
) -> None:
    conn.execute(
        "insert into llmqueue.model_config (model, rpm, max_concurrency) values ('a', 6000, %s)", (max_concurrency,)
    )
    conn.execute("insert into tasks (prompt) select '[[fault:hang]] ' || n from generate_series(1, 100) n")
    cold = (max_concurrency or slots) - kept
    with processes.backend(tmp_path, "--any-model", "--instant") as url:
        env = processes.environment(DATABASE_URL=installed, BACKEND_URL=url, CONCURRENCY=str(slots), DRAIN_S="0.1")
        with processes.workers(tmp_path, 1, env=env) as [worker]:
            eventually(lambda: running(conn) == cold)
            for number in range(10):
                conn.execute("insert into tasks (prompt, priority) values (%s, 100)", (f"now {number}",))
            eventually(
                lambda: (
                    conn.execute("select count(*) from tasks where priority = 100 and status = 'solved'").fetchone()
                    == (10,)
                )
            )
            eventually(lambda: running(conn) == cold)  # late grants are given back and made again
            assert worker.stop() == 0
