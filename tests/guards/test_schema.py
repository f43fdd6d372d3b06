"""The schema equals the snapshot, on every PostgreSQL, and after any number of installations."""

from __future__ import annotations

from pathlib import Path

import psycopg

from llmqueue.install.adopt import AdoptionSpec, install
from tools import schema

SNAPSHOT = Path(__file__).parents[1] / "snapshots" / "schema.txt"


def test_the_schema_is_the_one_of_the_snapshot(conn: psycopg.Connection[tuple[object, ...]]) -> None:
    assert schema.dump(conn) == SNAPSHOT.read_text(), "the schema has changed: make docs, and look at the difference"


def test_installing_twice_changes_nothing(database: str) -> None:
    dumps: list[str] = []
    lines: list[str] = []
    for _ in range(2):
        lines.clear()
        install(database, AdoptionSpec(), report=lines.append)
        with psycopg.connect(database, autocommit=True) as conn:
            dumps.append(schema.dump(conn))

    assert dumps[0] == dumps[1]
    assert [line for line in lines if line.startswith("nothing to change")] == lines


def test_functions_and_views_applied_anew_are_the_same(installed: str) -> None:
    with psycopg.connect(installed, autocommit=True) as conn:
        before = schema.dump(conn)
        conn.execute("update llmqueue.applied set source_hash = 'of another release' where part not like 'index %'")

    install(installed, AdoptionSpec())

    with psycopg.connect(installed, autocommit=True) as conn:
        assert schema.dump(conn) == before
