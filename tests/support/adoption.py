"""An owner's table to adopt, and functions that inspect it afterwards."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import psycopg
from psycopg import sql
from psycopg.rows import DictRow, dict_row

from llmqueue.install.adopt import AdoptionSpec, install

SIX = "('unsolved', 'running', 'solved', 'failed', 'cancelled', 'delayed')"
SIMPLE = f"""
    create table public.tasks (
        id bigint generated always as identity primary key,
        prompt text not null,
        answer text,
        status text not null default 'unsolved' check (status in {SIX})
    )
"""


def run(dsn: str, *statements: str) -> None:
    """Runs statements, each committed."""
    with psycopg.connect(dsn, autocommit=True) as conn:
        for statement in statements:
            conn.execute(statement.encode())


def rows(dsn: str, query: str, params: tuple[object, ...] = ()) -> list[tuple[Any, ...]]:
    """Returns the rows of a query."""
    with psycopg.connect(dsn, autocommit=True) as conn:
        return conn.execute(query.encode(), params or None).fetchall()


def value(dsn: str, query: str, params: tuple[object, ...] = ()) -> Any:
    """Returns the only value of a query."""
    ((found,),) = rows(dsn, query, params)
    return found


def task(dsn: str, key: object) -> DictRow:
    """Returns a row of llmqueue.task, by column name."""
    with psycopg.connect(dsn, autocommit=True, row_factory=dict_row) as conn:
        found = conn.execute("select * from llmqueue.task where id = %s", (key,)).fetchone()
    assert found is not None
    return found


def adopt(dsn: str, **options: Any) -> list[str]:
    """Installs with these options; returns the reported lines."""
    lines: list[str] = []
    install(dsn, AdoptionSpec(**options), report=lines.append)
    return lines


def snapshot(dsn: str) -> Mapping[str, object]:
    """Returns everything in the catalog that `init` may change, to check that a refusal changed nothing."""
    not_systems = "relnamespace::regnamespace::text !~ '^(pg_|information_schema)'"
    queries = {
        "schemas": "select nspname from pg_namespace where nspname !~ '^pg_(toast_)?temp' order by 1",
        "columns": f"select attrelid::regclass::text, attname, atttypid::regtype::text from pg_attribute "
        f"join pg_class c on c.oid = attrelid where attnum > 0 and not attisdropped and {not_systems} order by 1, 2",
        "indexes": f"select indexrelid::regclass::text, indisvalid from pg_index "
        f"join pg_class c on c.oid = indrelid where {not_systems} order by 1",
        "triggers": "select tgrelid::regclass::text, tgname from pg_trigger order by 1, 2",
    }
    return {name: rows(dsn, query) for name, query in queries.items()}


def explain(dsn: str, query: str) -> str:
    """Returns the plan of a query, without the sequential scan that a small table would get."""
    with psycopg.connect(dsn, autocommit=True) as conn:
        conn.execute("set enable_seqscan = off")
        conn.execute("set enable_bitmapscan = off")
        return "\n".join(
            str(line) for (line,) in conn.execute(sql.SQL("explain (costs off) {}").format(sql.SQL(query)))
        )


def settle(dsn: str, key: object, answer: str = '"42"') -> None:
    """Takes a task from ready to solved, as the functions do, but using only the mapping."""
    with psycopg.connect(dsn, autocommit=True) as conn:
        assert conn.execute("select is_ready, is_ended from llmqueue.task where id = %s", (key,)).fetchone() == (
            True,
            False,
        )
        conn.execute(
            "update llmqueue.task set status = llmqueue_internal.status_word('running'), attempts = 1, "
            "started_at = now() where id = %s and is_ready",
            (key,),
        )
        assert conn.execute("select is_running from llmqueue.task where id = %s", (key,)).fetchone() == (True,)
        conn.execute(
            "update llmqueue.task set status = llmqueue_internal.status_word('solved'), "
            "answer = llmqueue_internal.answer_value(%s) where id = %s",
            (answer, key),
        )
        conn.execute("select llmqueue_internal.mark_done(array[%s]::llmqueue.task_id[])", (key,))
        assert conn.execute("select is_ready, is_ended from llmqueue.task where id = %s", (key,)).fetchone() == (
            False,
            True,
        )
