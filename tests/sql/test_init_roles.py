"""Refusals of `init` because of the role or the server."""

from __future__ import annotations

import uuid

import psycopg
import pytest
from psycopg.conninfo import make_conninfo

from llmqueue.errors import AdoptionRefused
from llmqueue.install.adopt import AdoptionSpec, install
from tests.support.adoption import SIMPLE, adopt, run, snapshot, value


def test_role_without_the_rights(database: str) -> None:
    role = f"stranger_{uuid.uuid4().hex[:8]}"
    run(database, SIMPLE, f"create role {role} login", f"grant all on tasks to {role}")
    name = value(database, "select current_database()")
    before = snapshot(database)
    try:
        with pytest.raises(AdoptionRefused) as refusal:
            adopt(make_conninfo(database, user=role))

        assert str(refusal.value).splitlines() == [
            "cannot adopt public.tasks:",
            (
                f"  - the role {role} may not create a schema in database {name}. "
                f"Let its owner run: grant create on database {name} to {role};"
            ),
            (
                "  - it belongs to the role postgres, which has to own the objects that init creates, and this "
                f"session's role is {role}. Connect as postgres, or add ?options=-crole%3Dpostgres to "
                "the URL of a member of it."
            ),
            (
                f"  - this role may not create indexes in schema public. "
                f"Let its owner run: grant create on schema public to {role};"
            ),
        ]
        assert snapshot(database) == before
    finally:
        run(database, f"drop owned by {role}", f"drop role {role}")


def test_read_only_database(database: str) -> None:
    run(database, SIMPLE)

    with pytest.raises(
        AdoptionRefused, match="the session is read-only: default_transaction_read_only is on for this role"
    ):
        adopt(make_conninfo(database, options="-c default_transaction_read_only=on"))


def test_temporary_table_is_refused(database: str) -> None:
    with psycopg.connect(database, autocommit=True) as conn:
        conn.execute(b"create temp table tasks (id int primary key, prompt text, answer text, status text)")

        with pytest.raises(AdoptionRefused, match="there is no table"):
            install(database, AdoptionSpec(table="tasks"))
