"""In a lane with one user, the short query takes the same tasks as the long one, whatever rows are locked."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import psycopg
import pytest
from hypothesis import given
from hypothesis import strategies as st
from psycopg.rows import tuple_row
from pytest_postgresql.executors import NoopExecutor

from tests.support.server import Server
from tests.support.sql import T0, Queue, cloned

PICK = """
    select picked::text, seen, has_more, looked, cursors::text
      from llmqueue_internal.pick_by_priority(%s, %s, %s, 0, %s, %s::llmqueue.task_id[], %s, %s, %s)
"""
# user, seconds until it is due, priority, deadline has passed, quarantined, locked by another session, to be skipped
TASK = st.tuples(
    st.sampled_from([None, None, None, None, "u"]),
    st.sampled_from([-60, -60, -1, -1, 30]),
    st.sampled_from([0, 0, 0, 0, 1]),
    *[st.sampled_from([False, False, False, True])] * 4,
)


@pytest.fixture(scope="module")
def two(server: Server, template: NoopExecutor) -> Iterator[tuple[psycopg.Connection[Any], psycopg.Connection[Any]]]:
    with (
        cloned(server, str(template.template_dbname), "pick") as dsn,
        psycopg.connect(dsn, autocommit=True, options="-c lock_timeout=2s") as conn,
        psycopg.connect(dsn, autocommit=True) as holder,
    ):
        yield conn, holder


@given(
    tasks=st.lists(TASK, max_size=7),
    wanted=st.integers(1, 5),
    most=st.integers(1, 5),
    served=st.sampled_from([None, "", "t"]),
    with_size=st.booleans(),
    with_marks=st.booleans(),
)
def test_the_short_way_takes_what_the_long_one_takes(
    two: tuple[psycopg.Connection[Any], psycopg.Connection[Any]],
    tasks: list[tuple[str | None, int, int, bool, bool, bool, bool]],
    wanted: int,
    most: int,
    served: str | None,
    *,
    with_size: bool,
    with_marks: bool,
) -> None:
    conn, holder = two
    conn.execute("truncate tasks, llmqueue.quarantine")
    queue = Queue(conn)
    held: list[Any] = []
    skip: list[Any] = []
    for user, due_s, priority, is_expired, is_aside, is_held, is_skipped in tasks:
        due_at = T0 + timedelta(seconds=due_s)
        deadline_at = T0 - timedelta(seconds=1) if is_expired else None
        [key] = queue.add(
            model="m", user_id=user, priority=priority, created_at=due_at, run_at=due_at, deadline_at=deadline_at
        )
        held += [key] * is_held
        skip += [key] * is_skipped
        if is_aside:
            queue.rows("insert into llmqueue.quarantine (task_id, step, reason) values (%s, 'claim', 'no')", key)

    def pick(lanes: list[str]) -> tuple[Any, ...] | None:
        users = "{}" if served is None else f'{{"0 m": "{served}"}}'
        marks = "{}" if with_marks else None
        args = (lanes, [most, 5][: len(lanes)], users, wanted, skip, with_size, T0, marks)
        with conn.transaction(force_rollback=True), conn.cursor(row_factory=tuple_row) as cursor:
            return cursor.execute(PICK, args).fetchone()

    with holder.transaction():
        holder.execute("select from tasks where id = any (%s) for update", (held,))
        # with a second lane, which is empty, all turns are found out
        assert pick(["m"]) == pick(["m", "empty"])
