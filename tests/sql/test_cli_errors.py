"""Messages about a database in a wrong state: exact text, exit code, no traceback."""

from __future__ import annotations

from typing import LiteralString

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from llmqueue.db.connect import classify, newest_version
from llmqueue.errors import DatabaseRefused, DatabaseUnreachable
from tests.support.cli import run_cli


def execute(dsn: str, statement: LiteralString) -> None:
    with psycopg.connect(dsn, autocommit=True) as conn:
        conn.execute(statement)


def name_of(dsn: str) -> object:
    return conninfo_to_dict(dsn)["dbname"]


def test_no_server() -> None:
    done = run_cli("host=127.0.0.1 port=1 dbname=x", "status")

    assert (done.code, done.out) == (1, "")
    assert done.err == (
        "llmqueue: cannot reach the database at host 127.0.0.1 port 1: connection refused. Is it running? "
        "Check LLMQUEUE_DATABASE_URL.\n"
    )


def test_no_such_socket() -> None:
    done = run_cli("postgresql:///x?host=/nowhere", "models", "list")

    assert done.err == (
        "llmqueue: cannot reach the database at socket /nowhere: no server listens on that socket. Is it running? "
        "Check LLMQUEUE_DATABASE_URL.\n"
    )


def test_missing_database(installed: str) -> None:
    place = conninfo_to_dict(installed)["host"]
    done = run_cli(make_conninfo(installed, dbname="nope"), "status")

    assert (done.code, done.err) == (
        1,
        f'llmqueue: there is no database "nope" at socket {place}. Create it, or check LLMQUEUE_DATABASE_URL.\n',
    )


def test_missing_role(installed: str) -> None:
    done = run_cli(make_conninfo(installed, user="nobody_at_all"), "status")

    assert done.code == 1
    assert done.err.endswith(
        'refused user "nobody_at_all": role "nobody_at_all" does not exist. '
        "Check user and password in LLMQUEUE_DATABASE_URL.\n"
    )


def test_wrong_password_is_refused_and_never_shown() -> None:
    error = psycopg.OperationalError(
        'connection failed: connection to server at "10.0.0.1", port 5432 failed: '
        'FATAL:  password authentication failed for user "x"'
    )

    ours = classify(error, "postgresql://x:hunter2@db.example/q")

    assert isinstance(ours, DatabaseRefused)
    assert str(ours) == (
        'the database at host db.example port 5432 refused user "x": password authentication failed for user "x". '
        "Check user and password in LLMQUEUE_DATABASE_URL."
    )


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ('connection to server at "h" failed: FATAL:  the database system is starting up', "it is starting up"),
        ("connection failed: FATAL:  sorry, too many clients already", "it has no free connection"),
        ("connection timeout expired", "no answer in time"),
        ("failed to resolve host 'h': [Errno -2] Name or service not known", "unknown host name"),
        ("something new", "something new"),
    ],
)
def test_what_may_pass_is_worth_waiting_for(text: str, reason: str) -> None:
    ours = classify(psycopg.OperationalError(text), "host=h")

    assert isinstance(ours, DatabaseUnreachable)
    assert str(ours).startswith(f"cannot reach the database at host h port 5432: {reason}. Is it running?")


def test_database_without_init(database: str) -> None:
    done = run_cli(database, "status")

    assert (done.code, done.err) == (
        1,
        f'llmqueue: database "{name_of(database)}" has no llmqueue schema. Run: llmqueue init\n',
    )


def test_init_that_has_not_finished(installed: str) -> None:
    execute(installed, "update llmqueue.mapping set is_complete = false")

    assert run_cli(installed, "status").err == (
        f'llmqueue: the llmqueue schema of database "{name_of(installed)}" is not finished: run llmqueue init again\n'
    )


def test_schema_newer_than_the_program(installed: str) -> None:
    execute(installed, "insert into llmqueue.schema_version (version, name) values (9999, 'from_the_future')")
    assert run_cli(installed, "status").code == 0, "it says that it still serves this program"
    future = "create or replace function llmqueue.oldest_program() returns integer language sql as 'select 9999'"
    execute(installed, future)

    done = run_cli(installed, "status")

    assert (done.code, done.err) == (
        1,
        (
            f'llmqueue: database "{name_of(installed)}" has llmqueue schema version 9999, this llmqueue knows '
            f"{newest_version()}. Upgrade llmqueue.\n"
        ),
    )


def test_error_of_the_server_is_one_line(installed: str) -> None:
    execute(installed, "drop view llmqueue.worker_status")

    done = run_cli(installed, "status")

    assert (done.code, done.out) == (1, "")
    assert done.err == 'llmqueue: relation "llmqueue.worker_status" does not exist: run llmqueue init\n'


def test_unknown_setting() -> None:
    done = run_cli("x", "status", databse_url="y")

    assert (done.code, done.err) == (
        2,
        "llmqueue: unknown setting LLMQUEUE_DATABSE_URL; did you mean LLMQUEUE_DATABASE_URL?\n",
    )


def test_unknown_verb_is_wrong_usage() -> None:
    done = run_cli("x", "stats")

    assert done.code == 2
    assert "No such command 'stats'" in done.err


def test_every_verb_has_help() -> None:
    from llmqueue.cli import VERBS

    listed = run_cli("x", "--help")
    assert listed.code == 0
    for verb in VERBS:
        assert f"  {verb} " in listed.out
