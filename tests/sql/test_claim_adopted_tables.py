"""The whole way of a task on tables that other people made: keys, words, statuses and types of their own."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any
from uuid import UUID

import psycopg
import pytest

from tests.support.adoption import adopt, run
from tests.support.sql import Queue, complete, release, retry

KEYS = {
    "uuid": ("uuid primary key default gen_random_uuid()", UUID),
    "text": ("text primary key default 'a ''b\" ' || md5(random()::text)", str),
    "varchar": ("varchar(50) primary key default md5(random()::text)", str),
    "smallint": ("smallint generated always as identity primary key", int),
}
KEY = "id bigint generated always as identity primary key"
WORDS = {"running": "doing", "failed": "bad", "cancelled": "off", "delayed": "later"}


@pytest.fixture
def connection(database: str) -> Iterator[psycopg.Connection[Any]]:
    with psycopg.connect(database, autocommit=True) as conn:
        yield conn


@pytest.mark.parametrize("kind", KEYS)
def test_a_table_with_any_key_goes_the_whole_way(database: str, connection: psycopg.Connection[Any], kind: str) -> None:
    definition, python_type = KEYS[kind]
    run(database, f"create table tasks (id {definition}, prompt text, answer text, status text default 'unsolved')")
    adopt(database)
    queue = Queue(connection)
    queue.model("m", 60000)
    queue.add(4)

    grants = queue.claim(10).grants
    outcomes = queue.settle(complete(grants[0]), retry(grants[1], delay_s=1), release(grants[2]))

    assert all(isinstance(grant.id, python_type) for grant in grants)
    assert outcomes == ["completed", "retried", "released"]
    assert [queue.task(grant.id)["status"] for grant in grants] == ["solved", "delayed", "unsolved", "running"]
    queue.advance(2)
    assert queue.promote() == 1
    again = queue.claim(10).grants
    assert {grant.id for grant in again} == {grants[1].id, grants[2].id}
    assert queue.cancel(grants[3].id) == [grants[3].id]
    queue.lose(grants[3], *again)
    assert {grant.id for grant in queue.claim(10).grants} == {grants[1].id, grants[2].id}
    assert queue.restart(grants[3].id) == [grants[3].id]
    assert queue.claim(10).ids == [grants[3].id]


def test_own_words_and_names_go_the_whole_way(database: str, connection: psycopg.Connection[Any]) -> None:
    run(
        database,
        """create table "The Tasks" ("Key" uuid primary key default gen_random_uuid(), "Question" text, "Reply" text,
           "State" varchar(10) not null default 'new'
               check ("State" in ('new', 'doing', 'done', 'bad', 'off', 'later')),
           urgency bigint)""",
    )
    adopt(
        database,
        table='"The Tasks"',
        id_column="Key",
        prompt_column="Question",
        answer_column="Reply",
        status_column="State",
        queued_value="new",
        done_value="done",
        words=WORDS,
        columns={"priority": "urgency"},
    )
    queue = Queue(connection)
    queue.model("m", 60000)
    queue.rows("""insert into "The Tasks" ("Question", urgency) values
                  ('low', -9223372036854775808), ('high', 9223372036854775807), ('none', null)""")

    grants = queue.claim(10).grants
    assert [grant.prompt for grant in grants] == ["high", "none", "low"]
    queue.complete(grants[0], "42")
    queue.bury(grants[1])
    queue.retry(grants[2])

    assert queue.rows('select "State", "Reply" from "The Tasks" order by urgency nulls first') == [
        {"State": "bad", "Reply": None},
        {"State": "later", "Reply": None},
        {"State": "done", "Reply": "42"},
    ]


@pytest.mark.parametrize(
    ("definition", "options", "solved"),
    [
        ("status boolean not null default false", {"queued_value": "false", "done_value": "true"}, True),
        ("state char(1) default 'N'", {"status_column": "state", "queued_value": "N", "done_value": "Y"}, "Y"),
    ],
)
def test_a_status_of_our_own_goes_the_whole_way(
    database: str, connection: psycopg.Connection[Any], definition: str, options: dict[str, str], solved: object
) -> None:
    theirs = definition.split(maxsplit=1)[0]
    run(
        database,
        f"create table tasks ({KEY}, prompt text, answer text, {definition})",
    )
    adopt(database, own_status=True, **options)
    queue = Queue(connection)
    queue.model("m", 60000)
    queue.add(4)
    queue.rows(f"insert into tasks (prompt, {theirs}) values ('old', %s)", solved)

    grants = queue.claim(10).grants
    assert len(grants) == 4
    outcomes = queue.settle(complete(grants[0], "42"), retry(grants[1]), release(grants[2]))

    assert outcomes == ["completed", "retried", "released"]
    rows = queue.rows(f"select {theirs} as theirs, llmqueue_status as ours, answer from tasks order by id")
    assert [row["ours"] for row in rows] == ["solved", "delayed", None, "running", None]
    assert [row["theirs"] == solved for row in rows] == [True, False, False, False, True]
    assert rows[0]["answer"] == "42"
    assert queue.claim(10).ids == [grants[2].id]


def test_without_a_status_column_the_answer_tells(database: str, connection: psycopg.Connection[Any]) -> None:
    run(database, f"create table tasks ({KEY}, prompt text, answer text)")
    run(database, "insert into tasks (prompt, answer) values ('old', 'answered')")
    adopt(database, own_status=True)
    queue = Queue(connection)
    queue.model("m", 60000)
    queue.add(2)

    grants = queue.claim(10).grants
    queue.settle(*(complete(grant, "42") for grant in grants))

    assert queue.values("select answer from tasks order by id") == ["answered", "42", "42"]
    assert queue.claim(10).grants == []


def test_a_dead_letter_with_a_status_of_our_own_runs_again(database: str, connection: psycopg.Connection[Any]) -> None:
    run(
        database,
        f"create table tasks ({KEY}, prompt text, answer text, status boolean default false)",
    )
    adopt(database, own_status=True, queued_value="false", done_value="true")
    queue = Queue(connection)
    queue.model("m", 60000)
    queue.add()
    queue.bury(queue.claim(1).only)

    queue.restart(1)

    assert queue.claim(1).only.restarts == 1


@pytest.mark.parametrize("kind", ["json", "jsonb"])
def test_a_json_prompt_and_answer_go_as_json(database: str, connection: psycopg.Connection[Any], kind: str) -> None:
    run(
        database,
        f"create table tasks ({KEY}, prompt {kind}, answer {kind}, status text default 'unsolved')",
    )
    adopt(database)
    queue = Queue(connection)
    queue.model("m", 60000)
    queue.add(prompt='[{"role": "user"}]')
    queue.add(prompt='"text"')

    first, second = queue.claim(2).grants
    outcomes = queue.settle(complete(first, '{"a": [1, null]}'), complete(second, "not JSON"))

    assert (first.prompt, second.prompt) == ('[{"role": "user"}]', '"text"')
    assert outcomes == ["completed", "quarantined"]
    assert queue.task(first.id)["answer"] == {"a": [1, None]}
    assert queue.attempt(second)["answer"] == "not JSON"


def test_an_answer_too_long_for_their_column_is_kept_whole(database: str, connection: psycopg.Connection[Any]) -> None:
    run(
        database,
        f"create table tasks ({KEY}, prompt text, answer varchar(5), status text default 'unsolved')",
    )
    adopt(database)
    queue = Queue(connection)
    queue.model("m", 60000)
    queue.add(2)

    first, second = queue.claim(2).grants
    assert queue.settle(complete(first, "much too long"), complete(second, "short")) == ["quarantined", "completed"]

    assert queue.attempt(first)["answer"] == "much too long"
    assert queue.task(second.id)["answer"] == "short"


@pytest.mark.parametrize("status", ["status boolean default false", "note text"])
def test_a_solved_task_with_a_status_of_our_own_runs_again(
    database: str, connection: psycopg.Connection[Any], status: str
) -> None:
    run(database, f"create table tasks ({KEY}, prompt text, answer text, {status})")
    options = {"queued_value": "false", "done_value": "true"} if "boolean" in status else {}
    adopt(database, own_status=True, **options)
    queue = Queue(connection)
    queue.model("m", 60000)
    (key,) = queue.add()
    queue.complete(queue.claim(1).only)

    assert queue.restart(key) == [key]

    assert queue.claim(1).ids == [key]
