"""Tables that `init` refuses before it changes anything, with the remedy in the message."""

from __future__ import annotations

import pytest

from llmqueue.errors import AdoptionRefused
from tests.support.adoption import SIMPLE, SIX, adopt, run, snapshot

REST = "prompt text, answer text, status text not null default 'unsolved'"
OWN = "Name the words it uses with --word STATUS=VALUE, or keep the status in a column of ours with --own-status."

# what it is about: (what the owner has, options, the message after "cannot adopt …: ")
REFUSALS: dict[str, tuple[str, dict[str, object], str]] = {
    "no such table": (
        SIMPLE,
        {"table": "public.task"},
        'there is no table "task" in schema public. Did you mean tasks?',
    ),
    "no such schema": (
        "create schema work",
        {"table": "wrok.tasks"},
        'there is no schema "wrok". Did you mean work?',
    ),
    "options without a table": (
        "select",
        {"own_status": True},
        (
            'there is no table "tasks" in schema public. Name it with --table SCHEMA.TABLE; '
            "without options init creates public.tasks."
        ),
    ),
    "unknown column": (
        "create table tasks (id int primary key, promt text, answer text, status text default 'unsolved')",
        {},
        'it has no column "prompt". Did you mean promt? Name it with --prompt-column COLUMN.',
    ),
    "unknown column by option": (
        f"create table tasks (id int primary key, {REST})",
        {"answer_column": "result"},
        'it has no column "result". It has: id, prompt, answer, status.',
    ),
    "key under another name": (
        f"create table tasks (uid uuid primary key, {REST})",
        {},
        'it has no column "id". Its primary key is --id-column uid.',
    ),
    "key missing": (
        f"create table tasks (id bigint, {REST})",
        {},
        (
            'its key "id" is not unique and NOT NULL. Make it so: create unique index concurrently '
            "on public.tasks (id); alter table public.tasks alter column id set not null;"
        ),
    ),
    "key unique but nullable": (
        f"create table tasks (id bigint unique, other uuid primary key, {REST})",
        {},
        'its key "id" is not unique and NOT NULL. Use --id-column other, which is.',
    ),
    "key unique in part": (
        f"create table tasks (id bigint not null, {REST}); create unique index on tasks (id) where id > 5",
        {},
        (
            'its key "id" is not unique and NOT NULL. Make it so: create unique index concurrently '
            "on public.tasks (id); alter table public.tasks alter column id set not null;"
        ),
    ),
    "composite key": (
        f"create table tasks (id bigint, tenant int, {REST}, primary key (tenant, id))",
        {},
        (
            'its key is composite (tenant, id), and column "id" alone is not unique and NOT NULL. '
            "Make it so: create unique index concurrently on public.tasks (id); "
            "alter table public.tasks alter column id set not null;"
        ),
    ),
    "key of a strange type": (
        f"create table tasks (id numeric primary key, {REST})",
        {},
        (
            'its key "id" is numeric: a key is bigint, integer, smallint, uuid, text or varchar. '
            "Name another unique column with --id-column."
        ),
    ),
    "status missing": (
        "create table tasks (id int primary key, prompt text, answer text, state text)",
        {},
        (
            'it has no column "status". Did you mean state? Name it with --status-column COLUMN. '
            "Or give llmqueue a status column of its own with --own-status."
        ),
    ),
    "status CHECK too narrow": (
        (
            "create table tasks (id int primary key, prompt text, answer text, "
            "status text default 'unsolved' check (status in ('unsolved', 'solved')))"
        ),
        {},
        "status column \"status\" does not take 'running', 'failed', 'cancelled', 'delayed': "
        "constraint \"tasks_status_check\" CHECK ((status = ANY (ARRAY['unsolved'::text, 'solved'::text]))). " + OWN,
    ),
    "status enum without the words": (
        (
            "create type state as enum ('unsolved', 'running', 'solved');"
            "create table tasks (id int primary key, prompt text, answer text, status state default 'unsolved')"
        ),
        {},
        "status column \"status\" is the enum public.state without 'cancelled', 'delayed', "
        "'failed'; it has 'unsolved', 'running', 'solved'. " + OWN,
    ),
    "status domain": (
        (
            f"create domain state as text check (value in {SIX.replace('delayed', 'later')});"
            "create table tasks (id int primary key, prompt text, answer text, status state default 'unsolved')"
        ),
        {},
        "status column \"status\" is public.state, which does not take 'delayed'. " + OWN,
    ),
    "status too short": (
        "create table tasks (id int primary key, prompt text, answer text, status varchar(8) default 'unsolved')",
        {},
        "status column \"status\" is character varying(8), too short for 'cancelled'. " + OWN,
    ),
    "status boolean": (
        "create table tasks (id int primary key, prompt text, answer text, status boolean default false)",
        {},
        "status column \"status\" is boolean, which does not take 'cancelled', 'delayed', "
        "'failed', 'running', 'solved', 'unsolved'. " + OWN,
    ),
    "own status with a value that theirs does not take": (
        (
            "create type state as enum ('open', 'closed');"
            "create table tasks (id int primary key, prompt text, answer text, status state default 'open')"
        ),
        {"own_status": True, "queued_value": "open"},
        (
            "status column \"status\" is the enum public.state without 'solved'; it has 'open', "
            "'closed'. Name values that it takes with --queued-value and --done-value."
        ),
    ),
    "own status, no status column, answer not null": (
        "create table tasks (id int primary key, prompt text, answer text not null)",
        {"own_status": True},
        (
            'column "answer" is NOT NULL, and without a status column a task is one whose answer is '
            "null. Name a status column with --status-column, or drop the NOT NULL."
        ),
    ),
    "column of our name": (
        f"create table tasks (id int primary key, {REST}, created_at timestamptz)",
        {},
        (
            'column "created_at" exists already. Use it with --column created_at=created_at, '
            "or give ours another name with --column created_at=llmqueue_created_at."
        ),
    ),
    "column of the wrong type": (
        f"create table tasks (id int primary key, {REST}, created_at timestamp)",
        {"columns": {"created_at": "created_at"}},
        (
            'column "created_at" is timestamp without time zone, and created_at needs timestamp with '
            "time zone. Give ours another name with --column created_at=llmqueue_created_at."
        ),
    ),
    "column that must be null at times": (
        f"create table tasks (id int primary key, {REST}, started timestamptz not null)",
        {"columns": {"started_at": "started"}},
        (
            'column "started" is NOT NULL, and started_at is null most of the time. '
            "Give ours another name with --column started_at=llmqueue_started_at."
        ),
    ),
    "column taken twice": (
        f"create table tasks (id int primary key, {REST})",
        {"columns": {"error": "answer"}},
        'column "answer" cannot be both answer and error.',
    ),
    "answer of the wrong type": (
        "create table tasks (id int primary key, prompt text, answer bytea, status text default 'unsolved')",
        {},
        'column "answer" is bytea: a answer is text, varchar, json or jsonb. '
        "Name another with --answer-column.".replace("a answer", "an answer"),
    ),
    "answer generated": (
        (
            "create table tasks (id int primary key, prompt text, answer text generated always as ('x') stored, "
            "status text default 'unsolved')"
        ),
        {},
        'column "answer" is generated and cannot be written. Name another with --answer-column.',
    ),
    "view": (
        SIMPLE.replace("public.tasks", "public.jobs") + "; create view tasks as select * from jobs",
        {},
        "it is a view: name the table behind it with --table.",
    ),
    "materialized view": (
        "create materialized view tasks as select 1 as id",
        {},
        "it is a materialized view: tasks are rows that are updated. Name a table with --table.",
    ),
    "foreign table": (
        (
            "create foreign data wrapper w; create server s foreign data wrapper w;"
            "create foreign table tasks (id int) server s"
        ),
        {},
        ("it is a foreign table: rows elsewhere cannot be locked. Run init in the database where the table lives."),
    ),
    "partitioned table": (
        f"create table tasks (id bigint primary key, {REST}) partition by range (id)",
        {},
        (
            "it is a partitioned table: it takes no index CONCURRENTLY, and its key is unique only "
            "within a partition. Let the sources insert into a plain table and move finished rows to the partitioned "
            "one."
        ),
    ),
    "inheritance": (
        f"create table tasks (id bigint primary key, {REST}); create table tasks_old () inherits (tasks)",
        {},
        (
            "other tables inherit from it: its indexes and its key do not reach their rows. "
            "Name a child, or move the rows into one table."
        ),
    ),
    "index of our name elsewhere": (
        SIMPLE + "; create table jobs (id int); create index llmqueue_ready on jobs (id)",
        {},
        (
            "the index public.llmqueue_ready belongs to another table. "
            "If an earlier adoption has left it, run: drop index public.llmqueue_ready;"
        ),
    ),
}


@pytest.mark.parametrize("about", REFUSALS)
def test_refused_before_anything_changes_and_with_the_remedy(database: str, about: str) -> None:
    existing, options, message = REFUSALS[about]
    run(database, existing)
    before = snapshot(database)

    with pytest.raises(AdoptionRefused) as refusal:
        adopt(database, **options)

    assert str(refusal.value) == f"cannot adopt {options.get('table', 'public.tasks')}: {message}"
    assert refusal.value.exit_code == 1
    assert snapshot(database) == before


def test_all_problems_come_in_one_refusal(database: str) -> None:
    run(database, "create table tasks (id int, prompt text, status text, error json, model text)")

    with pytest.raises(AdoptionRefused) as refusal:
        adopt(database)

    lines = str(refusal.value).splitlines()
    assert lines[0] == "cannot adopt public.tasks:"
    beginnings = [
        '  - it has no column "answer". It has: id, prompt',
        '  - column "model" exists already. Use it with',
        '  - column "error" exists already. Use it with',
        "  - to use all existing columns that have our names: --column model=model --column error=error",
        '  - its key "id" is not unique and NOT NULL. Make it so',
    ]
    assert len(lines) == 1 + len(beginnings)
    for line, beginning in zip(lines[1:], beginnings, strict=True):
        assert line.startswith(beginning)
