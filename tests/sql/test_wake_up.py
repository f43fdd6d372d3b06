"""wake_up: the insert path costs next to nothing, and never fails because of llmqueue (design I17)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from uuid import uuid4

import psycopg
import pytest


@contextmanager
def listening(dsn: str) -> Iterator[psycopg.Connection[tuple[object, ...]]]:
    with psycopg.connect(dsn, autocommit=True) as conn:
        conn.execute("listen llmqueue")
        yield conn


def heard(conn: psycopg.Connection[tuple[object, ...]]) -> list[str]:
    """Discards earlier notifications, which arrive with the next round trip."""
    conn.execute("notify llmqueue, 'mark'")
    payloads = []
    for wake in conn.notifies(timeout=10):
        if wake.payload == "mark":
            break
        payloads.append(wake.payload)
    return payloads


def test_an_insert_rings_once_per_statement_while_a_worker_is_idle(conn: psycopg.Connection, installed: str) -> None:
    conn.execute("insert into llmqueue.idle_worker values (%s, now())", (uuid4(),))
    with listening(installed) as listener:
        conn.execute("insert into tasks (prompt) select 'why?' from generate_series(1, 1000)")
        assert heard(listener) == ["task"]


def test_an_insert_rings_nobody_while_all_are_busy(conn: psycopg.Connection, installed: str) -> None:
    with listening(installed) as listener:
        conn.execute("insert into tasks (prompt) values ('why?')")
        conn.execute("update tasks set priority = 3")
        assert heard(listener) == []


@pytest.mark.parametrize(
    "harm",
    [
        "drop table llmqueue.idle_worker",
        "alter table llmqueue.idle_worker rename to elsewhere",
        "drop schema llmqueue cascade",
    ],
)
def test_an_insert_never_fails_because_of_us(conn: psycopg.Connection, harm: str) -> None:
    if "schema" in harm:
        conn.execute("create function public.keep() returns trigger language plpgsql as 'begin return null; end'")
    conn.execute(harm)

    conn.execute("insert into tasks (prompt) values ('why?')")

    assert conn.execute("select count(*) from tasks").fetchone() == (1,)


def test_a_role_that_may_only_insert_rings_too(conn: psycopg.Connection, installed: str) -> None:
    role = f"source_{uuid4().hex[:8]}"
    conn.execute(f"create role {role}")
    try:
        conn.execute(f"grant insert (prompt) on tasks to {role}")
        conn.execute("insert into llmqueue.idle_worker values (%s, now())", (uuid4(),))
        with listening(installed) as listener:
            conn.execute(f"set role {role}")
            conn.execute("insert into tasks (prompt) values ('why?')")
            conn.execute("reset role")
            assert heard(listener) == ["task"]
    finally:
        conn.execute(f"drop owned by {role}")
        conn.execute(f"drop role {role}")


def test_a_hostile_search_path_changes_nothing(conn: psycopg.Connection, installed: str) -> None:
    conn.execute("create schema evil")
    conn.execute(
        "create function evil.pg_notify(text, text) returns void language plpgsql as "
        "'begin raise exception ''caught''; end'"
    )
    conn.execute("insert into llmqueue.idle_worker values (%s, now())", (uuid4(),))
    with listening(installed) as listener:
        conn.execute("set search_path = evil, pg_catalog, public")
        conn.execute("insert into public.tasks (prompt) values ('why?')")
        assert heard(listener) == ["task"]


def test_a_change_of_a_limit_sends_a_wake_up_signal(conn: psycopg.Connection, installed: str) -> None:
    with listening(installed) as listener:
        conn.execute("insert into llmqueue.model_config (model, rpm) values ('m', 60)")
        conn.execute("update llmqueue.model_config set rpm = 30")
        conn.execute("delete from llmqueue.model_config")
        assert heard(listener) == ["config"] * 3
