"""The work of people and programs with each role, through their commands, and the statements that are refused."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from uuid import uuid4

import psycopg
import pytest

from llmqueue.install.rights import OPERATOR, PRODUCER, READER
from tests.support.adoption import adopt, rows, run, value
from tests.support.cli import run_cli
from tests.support.roles import member, with_roles

PROMPT = "a prompt that nobody but the owner may read"
ANSWER = "an answer that nobody but the owner may read"


@pytest.fixture
def granted(installed: str) -> str:
    return with_roles(installed)


@pytest.fixture
def reader(granted: str) -> Iterator[str]:
    with member(granted, READER) as dsn:
        yield dsn


@pytest.fixture
def producer(granted: str) -> Iterator[str]:
    with member(granted, PRODUCER) as dsn:
        yield dsn


@pytest.fixture
def operator(granted: str) -> Iterator[str]:
    with member(granted, OPERATOR) as dsn:
        yield dsn


def _fill(dsn: str) -> None:
    """Adds a ready task (1), a failed one (2), a quarantined one (3), and an attempt with a late answer."""
    run(
        dsn,
        "insert into llmqueue.model_config (model, rpm, rpd) values ('small', 60, 1)",
        f"insert into tasks (id, prompt, model) values (1, '{PROMPT}', 'small')",
        "insert into tasks (id, prompt, status, error, answer, finished_at)"
        f" values (2, '{PROMPT}', 'failed', 'it broke', '{ANSWER}', now())",
        f"insert into tasks (id, prompt) values (3, '{PROMPT}')",
        "insert into llmqueue.quarantine (task_id, step, reason) values (3, 'claim', 'a trigger raised')",
        "insert into llmqueue.attempt (fence, task_id, model, worker, attempt_no, granted_at, cell, rpm, ended_at,"
        " outcome, error, answer)"
        f" values (1, 2, 'small', '{uuid4()}', 1, now(), 1, 60, now(), 'late', 'no', '{ANSWER}')",
    )


def test_a_reader_sees_numbers_and_reasons_and_no_prompt(granted: str, reader: str) -> None:
    _fill(granted)
    commands = ("status", "why 1", "why 2", "why 3", "audit", "dead list", "models list", "models pools")

    done = {command: run_cli(reader, *command.split(), "--json") for command in commands}

    assert {command: result.err for command, result in done.items() if result.code != 0} == {}
    assert value(reader, "select llmqueue.desired_inflight()") == 1
    assert all(json.loads(result.out) is not None for result in done.values())
    assert not [command for command, result in done.items() if PROMPT in result.out or ANSWER in result.out]


def _not_refused(dsn: str, statements: Iterable[str]) -> list[str]:
    """The statements that this login may run, each tried by itself."""
    done: list[str] = []
    for statement in statements:
        with psycopg.connect(dsn) as conn:
            try:
                conn.execute(statement.encode())
            except psycopg.errors.InsufficientPrivilege:
                continue
            done.append(statement)
            conn.rollback()
    return done


REFUSED_TO_READERS = (
    "tasks show 1", "tasks retry 2", "tasks cancel 1", "dead retry 2", "dead purge 2 --yes", "models set small --rpm 1",
    "models pause small", "models resume small", "models pool both small",
)  # fmt: skip


def test_a_reader_changes_nothing_and_is_told_so_in_a_line(granted: str, reader: str) -> None:
    _fill(granted)
    before = rows(granted, "select * from tasks order by id"), rows(granted, "table llmqueue.model_config")

    done = {command: run_cli(reader, *command.split()) for command in REFUSED_TO_READERS}

    assert {command: result.code for command, result in done.items()} == dict.fromkeys(REFUSED_TO_READERS, 1)
    said = "the database does not allow it: permission denied"
    assert [result.err for result in done.values() if said not in result.err or result.err.count("\n") != 1] == []
    assert not [command for command, result in done.items() if PROMPT in result.out + result.err]
    assert (rows(granted, "select * from tasks order by id"), rows(granted, "table llmqueue.model_config")) == before


def test_a_producer_inserts_from_a_file_and_by_sql(granted: str, producer: str) -> None:
    lines = b'{"id": 7, "prompt": "one", "priority": 5}\n{"id": 7, "prompt": "again"}\n{"id": 8, "prompt": "two"}\n'

    done = run_cli(producer, "add", "-", "--format", "jsonl", stdin=lines)
    with psycopg.connect(producer, autocommit=True) as conn:
        given = conn.execute("insert into tasks (prompt, params) values ('by SQL', '{}') returning id").fetchone()

    assert 'the id "7" exists already' in done.err
    assert rows(granted, "select id, prompt, priority from tasks where id in (7, 8) order by id") == [
        (7, "one", 5),
        (8, "two", 0),
    ]
    assert given is not None
    assert value(granted, "select status from tasks where id = %s", given) == "unsolved"


REFUSED_TO_PRODUCERS = (
    "select prompt from tasks", "select answer from tasks", "select * from tasks", "update tasks set prompt = ''",
        "delete from tasks", "truncate tasks", "insert into tasks (prompt, answer) values ('', 'forged')",
        "insert into tasks (prompt, fence) values ('', 1)",
        "create trigger t after insert on tasks execute function llmqueue_internal.wake_up()",
        "select * from llmqueue.backlog", "update llmqueue.model_config set rpm = 1",
        "select prompt from llmqueue.task", "select llmqueue.cancel(array[1]::llmqueue.task_id[])",
        "lock table tasks in access exclusive mode",
)  # fmt: skip


def test_a_producer_does_nothing_but_insert(granted: str, producer: str) -> None:
    _fill(granted)

    assert _not_refused(producer, REFUSED_TO_PRODUCERS) == []


def test_a_producer_wakes_an_idle_worker(granted: str, producer: str) -> None:
    run(granted, f"insert into llmqueue.idle_worker values ('{uuid4()}', now())")
    with psycopg.connect(granted, autocommit=True) as listener, psycopg.connect(producer, autocommit=True) as conn:
        listener.execute("listen llmqueue")

        conn.execute("insert into tasks (prompt) values ('ring')")

        assert [notify.payload for notify in listener.notifies(timeout=30, stop_after=1)] == ["task"]


def test_an_operator_changes_limits(granted: str, operator: str) -> None:
    _fill(granted)
    run(
        granted,
        "insert into llmqueue.model_state (model, cooldown_started_at, cooldown_until, cooldown_reason)"
        " values ('small', now(), now() + interval '1 hour', '429')",
    )

    for command in (
        "models set small --rpm 120", "models set other --rpm 5", "models pause small", "models resume small",
        "models pool both small=2 other", "models list", "status",
    ):  # fmt: skip
        done = run_cli(operator, *command.split())
        assert done.code == 0, (command, done.err)

    assert rows(granted, "select model, rpm, enabled from llmqueue.model_config order by model") == [
        ("other", 5, True),
        ("small", 120, True),
    ]
    assert value(granted, "select cooldown_until from llmqueue.model_state where model = 'small'") is None
    assert value(granted, "select count(*) from llmqueue.pool_member") == 2


def test_an_operator_restarts_cancels_and_purges(granted: str, operator: str) -> None:
    _fill(granted)

    for command in ("dead retry 2", "dead retry 3", "tasks cancel 1", "tasks retry 1", "tasks cancel 2"):
        done = run_cli(operator, *command.split())
        assert done.code == 0, (command, done.err)
    run(granted, "update tasks set status = 'failed', finished_at = now() - interval '2 days' where id = 3")
    purged = run_cli(operator, "dead", "purge", "--older-than", "1d", "--yes")

    assert purged.code == 0, purged.err
    assert rows(granted, "select id, status from tasks order by id") == [(1, "unsolved"), (2, "cancelled")]
    assert value(granted, "select count(*) from llmqueue.quarantine") == 0


def test_an_operator_restarts_a_task_whose_status_is_the_owners(database: str) -> None:
    run(
        database,
        "create schema app",
        "create table app.jobs (id serial primary key, prompt text, answer text, done boolean not null default false)",
        "insert into app.jobs (prompt) values ('p')",
    )
    adopt(
        database, table="app.jobs", own_status=True, status_column="done", queued_value="false", done_value="true",
        with_roles=True,
    )  # fmt: skip
    run(database, "update app.jobs set done = true, llmqueue_status = 'solved', finished_at = now()")

    with member(database, OPERATOR) as dsn:
        done = run_cli(dsn, "tasks", "retry", "1")
    with member(database, PRODUCER) as dsn:
        added = run_cli(dsn, "add", "-", "--format", "jsonl", stdin=b'{"prompt": "two"}\n')

    assert (done.code, added.code) == (0, 0), done.err + added.err
    assert rows(database, "select done, llmqueue_status from app.jobs order by id") == [(False, None), (False, None)]


REFUSED_TO_OPERATORS = (
    "select prompt from tasks", "select prompt, answer from llmqueue.task", "select answer from llmqueue.attempt",
        "update llmqueue.task set answer = 'forged'", "update llmqueue.task set prompt = 'forged'",
        "select * from llmqueue.claim(gen_random_uuid(), null, 1)", "delete from llmqueue.attempt",
        "update llmqueue.limiter set guard_s = 0", "delete from llmqueue.ledger_grant",
        "delete from llmqueue.model_config",
        "insert into llmqueue.task (prompt) values ('mine')",
)  # fmt: skip


def test_an_operator_reads_no_prompt_and_writes_no_answer(granted: str, operator: str) -> None:
    _fill(granted)

    assert _not_refused(operator, REFUSED_TO_OPERATORS) == []


def test_a_member_of_nothing_sees_nothing(granted: str) -> None:
    with member(granted, "pg_monitor") as dsn:
        done = run_cli(dsn, "status")

        assert done.code == 1
        assert "has no rights on schema llmqueue" in done.err
        with psycopg.connect(dsn) as conn, pytest.raises(psycopg.errors.InsufficientPrivilege):
            conn.execute("select * from llmqueue.backlog")
