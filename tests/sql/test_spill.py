"""Ends from a spill file are settled in the name of the worker that made the attempt, and only in its database."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from uuid import UUID, uuid4

import anyio
import psycopg
import pytest
from psycopg.conninfo import make_conninfo

from llmqueue.db.store import Store
from llmqueue.spill.codec import encode
from llmqueue.spill.file import Database, Spill, read_database
from llmqueue.spill.inheritance import inherit
from llmqueue.types import Complete, Grant, Room, Settlement, Usage
from tests.support.sql import clock_at

pytestmark = pytest.mark.anyio
Conn = psycopg.Connection[tuple[object, ...]]


@asynccontextmanager
async def worker(dsn: str) -> AsyncIterator[Store]:
    store = Store(dsn, uuid4(), prompt_is_json=False, answer_is_json=False, is_pooled=False)
    await store.open()
    await store.register("a worker", "0", None, 20.0, 0.5)
    yield store
    await store.aclose()


async def claimed(store: Store, conn: Conn) -> Grant:
    conn.execute("insert into llmqueue.model_config (model, rpm) values ('m', 6000) on conflict do nothing")
    with anyio.fail_after(60):
        while not (claim := await store.claim(None, Room(1, 0), [], 0, None)).grants:
            await anyio.sleep(0.02)
    return claim.grants[0]


async def settle_spilled(store: Store, folder: Path, grant: Grant, answer: str, owner: UUID) -> dict[int, str]:
    """The owner has written the answer to its spill file and is dead; `store` belongs to another worker."""
    here = Database("1/1", "here")
    spill = Spill(folder, owner, here)
    spill.append([encode(Settlement(grant, Complete(answer, Usage(3, 4)), 0.01, 0.2))])
    spill.close()
    inheritance = inherit(spill.path, here)
    assert inheritance is not None
    ends = [inheritance.spill.read(left.place) for left in inheritance.left]
    return await store.settle(ends, inheritance.spill.worker)


def sweep_as_if_long_dead(conn: Conn, worker: UUID) -> None:
    conn.execute("update llmqueue.worker set heartbeat_at = now() - interval '1 day' where worker = %s", (worker,))
    conn.execute("update llmqueue.worker set beating_since = now() - interval '1 day' where worker <> %s", (worker,))
    sweeper = conn.execute("select worker from llmqueue.worker where worker <> %s", (worker,)).fetchone()
    assert sweeper is not None
    conn.execute("update llmqueue.worker set lease_s = 0.01, heartbeat_at = now() where worker = %s", sweeper)
    (beat_at,) = conn.execute("select heartbeat_at from llmqueue.worker where worker = %s", sweeper).fetchone() or ()
    with clock_at(conn, beat_at):
        conn.execute("select llmqueue_internal.sweep(%s, 500)", sweeper)


def task(conn: Conn) -> object:
    return conn.execute("select answer, status, input_tokens, output_tokens from tasks").fetchone()


async def test_an_inherited_answer_is_the_end_of_its_attempt(installed: str, conn: Conn, tmp_path: Path) -> None:
    conn.execute("insert into tasks (prompt) values ('why?')")
    async with worker(installed) as gone, worker(installed) as recovery:
        grant = await claimed(gone, conn)

        outcomes = await settle_spilled(recovery, tmp_path, grant, "42 \U0001f680", gone.worker)

    assert outcomes == {grant.task.fence: "completed"}
    assert task(conn) == ("42 \U0001f680", "solved", 3, 4)
    attempt = conn.execute("select worker, outcome, latency_s from llmqueue.attempt").fetchone()
    assert attempt == (gone.worker, "completed", 0.2)


async def test_it_is_nobody_elses_end(installed: str, conn: Conn, tmp_path: Path) -> None:
    conn.execute("insert into tasks (prompt) values ('why?')")
    async with worker(installed) as gone, worker(installed) as recovery:
        grant = await claimed(gone, conn)

        outcomes = await settle_spilled(recovery, tmp_path, grant, "42", recovery.worker)

    assert outcomes == {grant.task.fence: "unknown"}
    assert task(conn) == (None, "running", None, None)


async def test_it_counts_after_a_sweep_while_nobody_runs_the_task_anew(
    installed: str, conn: Conn, tmp_path: Path
) -> None:
    conn.execute("insert into tasks (prompt) values ('why?')")
    async with worker(installed) as gone, worker(installed) as recovery:
        grant = await claimed(gone, conn)
        sweep_as_if_long_dead(conn, gone.worker)
        assert conn.execute("select outcome from llmqueue.attempt").fetchone() == ("lost",)

        outcomes = await settle_spilled(recovery, tmp_path, grant, "42", gone.worker)

    assert outcomes == {grant.task.fence: "completed"}
    assert task(conn) == ("42", "solved", 3, 4)


async def test_it_is_kept_in_the_log_when_the_task_runs_anew(installed: str, conn: Conn, tmp_path: Path) -> None:
    conn.execute("insert into tasks (prompt) values ('why?')")
    async with worker(installed) as gone, worker(installed) as recovery:
        grant = await claimed(gone, conn)
        sweep_as_if_long_dead(conn, gone.worker)
        newer = await claimed(recovery, conn)

        outcomes = await settle_spilled(recovery, tmp_path, grant, "42", gone.worker)

    assert outcomes == {grant.task.fence: "late"}
    assert task(conn) == (None, "running", None, None)
    kept = conn.execute("select fence, answer from llmqueue.attempt order by fence").fetchall()
    assert kept == [(grant.task.fence, "42"), (newer.task.fence, None)]


async def test_sent_twice_it_is_settled_once(installed: str, conn: Conn, tmp_path: Path) -> None:
    conn.execute("insert into tasks (prompt) values ('why?')")
    async with worker(installed) as gone, worker(installed) as recovery:
        grant = await claimed(gone, conn)
        first = await settle_spilled(recovery, tmp_path / "a", grant, "42", gone.worker)

        second = await settle_spilled(recovery, tmp_path / "b", grant, "other", gone.worker)

    assert first == second == {grant.task.fence: "completed"}
    assert task(conn) == ("42", "solved", 3, 4)


def test_a_database_is_told_from_every_other(installed: str, database: str, conn: Conn) -> None:
    with psycopg.connect(installed) as again, psycopg.connect(database) as another:
        here, same, other = read_database(conn), read_database(again), read_database(another)

    assert here == same
    assert here.id != other.id
    assert here.name == conn.info.dbname
    system, oid = here.id.split("/")
    assert int(system) > 0
    assert int(oid) > 0


def test_a_role_without_rights_can_tell_too(installed: str, conn: Conn) -> None:
    conn.execute("drop role if exists nobody_special")
    conn.execute("create role nobody_special login")
    try:
        with psycopg.connect(make_conninfo(installed, user="nobody_special"), autocommit=True) as theirs:
            assert read_database(theirs) == read_database(conn)
    finally:
        conn.execute("drop role nobody_special")
