"""What `init` refuses before changing anything, with the remedy in the message."""

from __future__ import annotations

import uuid

import psycopg
import pytest
from psycopg.conninfo import make_conninfo

from llmqueue.adopt import AdoptionSpec, install, plan
from llmqueue.errors import AdoptionRefused, UsageError
from llmqueue.spec import parse_pairs
from tests.support.adoption import SIMPLE, SIX, adopt, run, snapshot, value

REST = "prompt text, answer text, status text not null default 'unsolved'"
OWN = "Name the words it uses with --word STATUS=VALUE, or keep the status in a column of ours with --own-status."

# what it is about: (what the owner has, options, the message)
REFUSALS: dict[str, tuple[str, dict[str, object], str]] = {
    "no such table": (
        SIMPLE,
        {"table": "public.task"},
        'cannot adopt public.task: there is no table "task" in schema public. Did you mean tasks?',
    ),
    "no such schema": (
        "create schema work",
        {"table": "wrok.tasks"},
        'cannot adopt wrok.tasks: there is no schema "wrok". Did you mean work?',
    ),
    "options without a table": (
        "select",
        {"own_status": True},
        'cannot adopt public.tasks: there is no table "tasks" in schema public. Name it with --table SCHEMA.TABLE; '
        "without options init creates public.tasks.",
    ),
    "unknown column": (
        "create table tasks (id int primary key, promt text, answer text, status text default 'unsolved')",
        {},
        'cannot adopt public.tasks: it has no column "prompt". Did you mean promt? Name it with --prompt-column COLUMN.',
    ),
    "unknown column by option": (
        f"create table tasks (id int primary key, {REST})",
        {"answer_column": "result"},
        'cannot adopt public.tasks: it has no column "result". It has: id, prompt, answer, status.',
    ),
    "key under another name": (
        f"create table tasks (uid uuid primary key, {REST})",
        {},
        'cannot adopt public.tasks: it has no column "id". Its primary key is --id-column uid.',
    ),
    "key missing": (
        f"create table tasks (id bigint, {REST})",
        {},
        'cannot adopt public.tasks: its key "id" is not unique and NOT NULL. Make it so: create unique index concurrently '
        "on public.tasks (id); alter table public.tasks alter column id set not null;",
    ),
    "key unique but nullable": (
        f"create table tasks (id bigint unique, other uuid primary key, {REST})",
        {},
        'cannot adopt public.tasks: its key "id" is not unique and NOT NULL. Use --id-column other, which is.',
    ),
    "key unique in part": (
        f"create table tasks (id bigint not null, {REST}); create unique index on tasks (id) where id > 5",
        {},
        'cannot adopt public.tasks: its key "id" is not unique and NOT NULL. Make it so: create unique index concurrently '
        "on public.tasks (id); alter table public.tasks alter column id set not null;",
    ),
    "composite key": (
        f"create table tasks (id bigint, tenant int, {REST}, primary key (tenant, id))",
        {},
        'cannot adopt public.tasks: its key is composite (tenant, id), and column "id" alone is not unique and NOT NULL. '
        "Make it so: create unique index concurrently on public.tasks (id); "
        "alter table public.tasks alter column id set not null;",
    ),
    "key of a strange type": (
        f"create table tasks (id numeric primary key, {REST})",
        {},
        'cannot adopt public.tasks: its key "id" is numeric: a key is bigint, integer, smallint, uuid, text or varchar. '
        "Name another unique column with --id-column.",
    ),
    "status missing": (
        "create table tasks (id int primary key, prompt text, answer text, state text)",
        {},
        'cannot adopt public.tasks: it has no column "status". Did you mean state? Name it with --status-column COLUMN. '
        "Or give llmqueue a status column of its own with --own-status.",
    ),
    "status CHECK too narrow": (
        "create table tasks (id int primary key, prompt text, answer text, "
        "status text default 'unsolved' check (status in ('unsolved', 'solved')))",
        {},
        "cannot adopt public.tasks: status column \"status\" does not take 'running', 'failed', 'cancelled', 'delayed': "
        "constraint \"tasks_status_check\" CHECK ((status = ANY (ARRAY['unsolved'::text, 'solved'::text]))). " + OWN,
    ),
    "status enum without the words": (
        "create type state as enum ('unsolved', 'running', 'solved');"
        "create table tasks (id int primary key, prompt text, answer text, status state default 'unsolved')",
        {},
        "cannot adopt public.tasks: status column \"status\" is the enum public.state without 'cancelled', 'delayed', "
        "'failed'; it has 'unsolved', 'running', 'solved'. " + OWN,
    ),
    "status domain": (
        f"create domain state as text check (value in {SIX.replace('delayed', 'later')});"
        "create table tasks (id int primary key, prompt text, answer text, status state default 'unsolved')",
        {},
        "cannot adopt public.tasks: status column \"status\" is public.state, which does not take 'delayed'. " + OWN,
    ),
    "status too short": (
        "create table tasks (id int primary key, prompt text, answer text, status varchar(8) default 'unsolved')",
        {},
        "cannot adopt public.tasks: status column \"status\" is character varying(8), too short for 'cancelled'. " + OWN,
    ),
    "status boolean": (
        "create table tasks (id int primary key, prompt text, answer text, status boolean default false)",
        {},
        "cannot adopt public.tasks: status column \"status\" is boolean, which does not take 'cancelled', 'delayed', "
        "'failed', 'running', 'solved', 'unsolved'. " + OWN,
    ),
    "own status with a value that theirs does not take": (
        "create type state as enum ('open', 'closed');"
        "create table tasks (id int primary key, prompt text, answer text, status state default 'open')",
        {"own_status": True, "queued_value": "open"},
        "cannot adopt public.tasks: status column \"status\" is the enum public.state without 'solved'; it has 'open', "
        "'closed'. Name values that it takes with --queued-value and --done-value.",
    ),
    "own status, no status column, answer not null": (
        "create table tasks (id int primary key, prompt text, answer text not null)",
        {"own_status": True},
        'cannot adopt public.tasks: column "answer" is NOT NULL, and without a status column a task is one whose answer is '
        "null. Name a status column with --status-column, or drop the NOT NULL.",
    ),
    "column of our name": (
        f"create table tasks (id int primary key, {REST}, created_at timestamptz)",
        {},
        'cannot adopt public.tasks: column "created_at" is there already. Use it with --column created_at=created_at, '
        "or give ours another name with --column created_at=llmqueue_created_at.",
    ),
    "column of the wrong type": (
        f"create table tasks (id int primary key, {REST}, created_at timestamp)",
        {"columns": {"created_at": "created_at"}},
        'cannot adopt public.tasks: column "created_at" is timestamp without time zone, and created_at needs timestamp with '
        "time zone. Give ours another name with --column created_at=llmqueue_created_at.",
    ),
    "column that must be null at times": (
        f"create table tasks (id int primary key, {REST}, started timestamptz not null)",
        {"columns": {"started_at": "started"}},
        'cannot adopt public.tasks: column "started" is NOT NULL, and started_at is null for most of a task\'s life. '
        "Give ours another name with --column started_at=llmqueue_started_at.",
    ),
    "column taken twice": (
        f"create table tasks (id int primary key, {REST})",
        {"columns": {"error": "answer"}},
        'cannot adopt public.tasks: column "answer" cannot be both answer and error.',
    ),
    "answer of the wrong type": (
        "create table tasks (id int primary key, prompt text, answer bytea, status text default 'unsolved')",
        {},
        'cannot adopt public.tasks: column "answer" is bytea: a answer is text, varchar, json or jsonb. '
        "Name another with --answer-column.".replace("a answer", "an answer"),
    ),
    "answer generated": (
        "create table tasks (id int primary key, prompt text, answer text generated always as ('x') stored, "
        "status text default 'unsolved')",
        {},
        'cannot adopt public.tasks: column "answer" is generated and cannot be written. Name another with --answer-column.',
    ),
    "view": (
        SIMPLE.replace("public.tasks", "public.jobs") + "; create view tasks as select * from jobs",
        {},
        "cannot adopt public.tasks: it is a view: name the table behind it with --table.",
    ),
    "materialized view": (
        "create materialized view tasks as select 1 as id",
        {},
        "cannot adopt public.tasks: it is a materialized view: tasks are rows that are updated. Name a table with --table.",
    ),
    "foreign table": (
        "create foreign data wrapper w; create server s foreign data wrapper w; create foreign table tasks (id int) server s",
        {},
        "cannot adopt public.tasks: it is a foreign table: rows elsewhere cannot be locked. "
        "Run init in the database where the table lives.",
    ),
    "partitioned table": (
        f"create table tasks (id bigint primary key, {REST}) partition by range (id)",
        {},
        "cannot adopt public.tasks: it is a partitioned table: it takes no index CONCURRENTLY, and its key is unique only "
        "within a partition. Let the sources insert into a plain table and move finished rows to the partitioned one.",
    ),
    "inheritance": (
        f"create table tasks (id bigint primary key, {REST}); create table tasks_old () inherits (tasks)",
        {},
        "cannot adopt public.tasks: other tables inherit from it: its indexes and its key do not reach their rows. "
        "Name a child, or move the rows into one table.",
    ),
    "index of our name elsewhere": (
        SIMPLE + "; create table jobs (id int); create index llmqueue_ready on jobs (id)",
        {},
        "cannot adopt public.tasks: the index public.llmqueue_ready belongs to another table. "
        "If it is left over from an earlier adoption, run: drop index public.llmqueue_ready;",
    ),
}


@pytest.mark.parametrize("about", REFUSALS)
def test_refused_before_anything_changes_and_with_the_remedy(database: str, about: str) -> None:
    existing, options, message = REFUSALS[about]
    run(database, existing)
    before = snapshot(database)

    with pytest.raises(AdoptionRefused) as refusal:
        adopt(database, **options)

    assert str(refusal.value) == message
    assert refusal.value.exit_code == 1
    assert snapshot(database) == before


def test_all_problems_come_in_one_refusal(database: str) -> None:
    run(database, "create table tasks (id int, prompt text, status text, error json, model text)")

    with pytest.raises(AdoptionRefused) as refusal:
        adopt(database)

    lines = str(refusal.value).splitlines()
    assert lines[0] == "cannot adopt public.tasks:"
    assert [line[:32] for line in lines[1:]] == [
        '  - it has no column "answer". It',
        '  - column "model" is there alre',
        '  - column "error" is there alre',
        "  - to use all columns of our na",
        '  - its key "id" is not unique a',
    ]


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
            f"  - the role {role} may not create a schema in database {name}. "
            f"Let its owner run: grant create on database {name} to {role};",
            "  - it belongs to the role postgres, and only that role may add columns. "
            "Connect as postgres, or as a member of it.",
            f"  - this role may not create indexes in schema public. "
            f"Let its owner run: grant create on schema public to {role};",
        ]
        assert snapshot(database) == before
    finally:
        run(database, f"drop owned by {role}", f"drop role {role}")


def test_read_only_database(database: str) -> None:
    run(database, SIMPLE)

    with pytest.raises(AdoptionRefused, match="the session is read-only: default_transaction_read_only is on for this role"):
        adopt(make_conninfo(database, options="-c default_transaction_read_only=on"))


def test_constraint_over_several_columns_is_a_warning(database: str) -> None:
    run(database, SIMPLE, "alter table tasks add constraint whole check (status <> 'solved' or answer is not null)")

    found = plan(database, AdoptionSpec()).warnings

    assert any(line.startswith('constraint "whole" CHECK (') and "is about \"status\" and more" in line for line in found)


def test_status_without_a_default_is_a_warning(database: str) -> None:
    run(database, "create table tasks (id int primary key, prompt text, answer text, status text)")

    assert (
        'column "status" has no default: a row inserted without it is no task. '
        "Run: alter table public.tasks alter column status set default 'unsolved';"
    ) in plan(database, AdoptionSpec()).warnings


def test_a_check_that_cannot_be_evaluated_is_a_warning(database: str) -> None:
    run(
        database,
        "create function picky(s text) returns boolean language plpgsql as 'begin raise exception ''no''; end'",
        "create table tasks (id int primary key, prompt text, answer text, status text default 'unsolved' check (picky(status)))",
    )

    assert any('constraint "tasks_status_check"' in line for line in plan(database, AdoptionSpec()).warnings)


USAGE: dict[str, tuple[dict[str, object], str]] = {
    "unknown column of ours": (
        {"columns": {"create_at": "x"}},
        "--column create_at=x: llmqueue has no column create_at. Did you mean created_at?",
    ),
    "one of the four": (
        {"columns": {"prompt": "question"}},
        "--column prompt=question: this one is named by --prompt-column question.",
    ),
    "one column for two": (
        {"columns": {"created_at": "at", "run_at": "at"}},
        "--column run_at=at: at is created_at already. Give each its own column.",
    ),
    "unknown status": (
        {"words": {"runing": "x"}},
        "--word runing=x: llmqueue has no status runing. Did you mean running?",
    ),
    "one word for two": (
        {"words": {"failed": "solved"}},
        "'solved' stands for both solved and failed. Each status needs a word of its own: --word failed=VALUE, "
        "or use --own-status.",
    ),
    "contradiction": (
        {"words": {"solved": "done"}, "done_value": "ready"},
        "--word solved=done and --done-value ready contradict each other. Leave one out.",
    ),
    "words of a status of our own": (
        {"words": {"running": "doing"}, "own_status": True},
        "--word running=doing: with --own-status llmqueue writes its own words into its own column. Leave it out; "
        "--queued-value and --done-value are the words of yours.",
    ),
    "no table name": (
        {"table": "a.b.c"},
        "--table a.b.c: this is no table name. Write table or schema.table; a name with a dot or a quote in it goes in "
        "double quotes: '\"my.schema\".\"my.table\"'.",
    ),
    "no time to wait": (
        {"lock_wait_s": 0},
        "--lock-wait 0: the time to wait for a lock is a number of seconds above 0.",
    ),
}


@pytest.mark.parametrize("about", USAGE)
def test_wrong_options_are_told_without_a_database(about: str) -> None:
    options, message = USAGE[about]

    with pytest.raises(UsageError) as error:
        AdoptionSpec(**options)  # type: ignore[arg-type]

    assert (str(error.value), error.value.exit_code) == (message, 2)


def test_malformed_pairs_are_told_with_the_form() -> None:
    with pytest.raises(UsageError, match=r"^--word running: write it as --word STATUS=VALUE\.$"):
        parse_pairs("--word", ["running"], "STATUS=VALUE")
    with pytest.raises(UsageError, match=r"^--word running is given twice: a and b\. Leave one of them out\.$"):
        parse_pairs("--word", ["running=a", "running=b"], "STATUS=VALUE")


def test_temporary_table_is_refused(database: str) -> None:
    with psycopg.connect(database, autocommit=True) as conn:
        conn.execute(f"create temp table tasks (id int primary key, {REST})".encode())

        with pytest.raises(AdoptionRefused, match="there is no table"):
            install(database, AdoptionSpec(table="tasks"))
