"""Tables of all kinds that `init` adopts: keys, names, words, types."""

from __future__ import annotations

import uuid
from typing import Any

import psycopg
import pytest

from tests.support.adoption import SIMPLE, adopt, explain, rows, run, settle, task, value

READY = (
    "select id from llmqueue.task where is_ready and lane = 'x' and rank = 0 and user_key = '' and due_at <= now() "
    "order by due_at, id limit 10 for no key update skip locked"
)
KEYS: dict[str, tuple[str, str, object]] = {
    "bigint": ("bigint generated always as identity primary key", "bigint", 1),
    "integer": ("serial primary key", "integer", 1),
    "smallint": ("smallint primary key default 7", "smallint", 7),
    "uuid": ("uuid primary key default gen_random_uuid()", "uuid", None),
    "text": ("text primary key default 'a''b\"c'", "text", "a'b\"c"),
    "varchar": ("varchar(40) not null unique default 'x y'", "text", "x y"),
    "domain": ("public.doc_id primary key default 'd-1'", "text", "d-1"),
}


@pytest.mark.parametrize("kind", KEYS)
def test_any_key_is_adopted(database: str, kind: str) -> None:
    definition, key_type, _ = KEYS[kind]
    run(database, "create domain public.doc_id as varchar(20) check (value <> '')")
    run(database, f"create table tasks (id {definition}, prompt text, answer text, status text default 'unsolved')")
    run(database, "insert into tasks (prompt) values ('Why?')")

    adopt(database)

    key = value(database, "select id from tasks")
    assert (
        value(
            database, "select format_type(typbasetype, typtypmod) from pg_type where oid = 'llmqueue.task_id'::regtype"
        )
        == key_type
    )
    settle(database, key)
    assert rows(database, "select id, status, answer, attempts from tasks") == [(key, "solved", '"42"', 1)]
    assert "llmqueue_ready" in explain(database, READY)


def test_quoted_names_own_words_and_renamed_columns(database: str) -> None:
    run(
        database,
        'create schema "My ""Own"" Schema"',
        """create table "My ""Own"" Schema"."Tasks; drop" (
            "The Id" uuid primary key default gen_random_uuid(), "Prompt's" text, "ANSWER" text,
            "Status %s" varchar(12) not null default 'new'
                check ("Status %s" in ('new', 'doing', 'done', 'bad', 'off', 'later')),
            created_at timestamptz not null default now(), "from" text, priority bigint)""",
        """insert into "My ""Own"" Schema"."Tasks; drop" ("Prompt's", priority) values ('Why?', 3)""",
    )

    adopt(
        database,
        table='"My ""Own"" Schema"."Tasks; drop"',
        id_column="The Id",
        prompt_column="Prompt's",
        answer_column="ANSWER",
        status_column="Status %s",
        queued_value="new",
        done_value="done",
        words={"running": "doing", "failed": "bad", "cancelled": "off", "delayed": "later"},
        columns={"created_at": "created_at", "user_id": "from", "priority": "priority", "error": 'why "it" failed'},
    )

    key = value(database, 'select "The Id" from "My ""Own"" Schema"."Tasks; drop"')
    assert isinstance(key, uuid.UUID)
    assert (task(database, key)["rank"], task(database, key)["user_id"]) == (3, None)
    settle(database, key)
    assert rows(
        database, """select "Status %s", "ANSWER", 'why "it" failed' from "My ""Own"" Schema"."Tasks; drop" """
    )[0][:2] == (
        "done",
        '"42"',
    )
    assert (
        value(
            database,
            "select count(*) from pg_attribute where attname = 'why \"it\" failed' and attrelid = "
            """'"My ""Own"" Schema"."Tasks; drop"'::regclass""",
        )
        == 1
    )
    assert "llmqueue_ready" in explain(database, READY)


OWN_STATUS: dict[str, tuple[str, dict[str, Any], tuple[str, ...], str | None]] = {
    # the column, the options, values that are not to be touched, the value when done
    "boolean": ("status boolean not null default false", {}, ("true",), "true"),
    "nullable boolean": ("status boolean", {}, ("true",), "true"),
    "enum": (
        "status public.state default 'open'",
        {"queued_value": "open", "done_value": "closed"},
        ("closed", "held"),
        "closed",
    ),
    "too narrow": (
        "status char(1) default 'N' check (status in ('N', 'Y', 'H'))",
        {"queued_value": "N", "done_value": "Y"},
        ("Y", "H"),
        "Y",
    ),
    "quoted": (
        "\"Is Done?\" text default 'no $$ ''way'''",
        {"status_column": "Is Done?", "queued_value": "no $$ 'way'", "done_value": "$$ yes"},
        ("$$ yes", "never"),
        "$$ yes",
    ),
    "none": ("note text", {}, (), None),
}


@pytest.mark.parametrize("kind", OWN_STATUS)
def test_a_status_of_our_own_leaves_theirs_alone_but_for_the_done_value(database: str, kind: str) -> None:
    definition, options, others, done = OWN_STATUS[kind]
    theirs = '"Is Done?"' if kind == "quoted" else "status"
    run(
        database,
        "create type public.state as enum ('open', 'closed', 'held')",
        f"create table tasks (id int generated always as identity primary key, prompt text, answer text, {definition})",
        "insert into tasks (prompt) values ('Why?')",
        "insert into tasks (prompt, answer) values ('Old', 'answered')" if done is None else "select",
        *(f"insert into tasks (prompt, {theirs}) values ('Old', $v${other}$v$)" for other in others),
    )
    old = rows(database, "select xmin, ctid, * from tasks where prompt = 'Old'")

    adopt(database, own_status=True, **options)

    assert rows(database, "select count(*) from llmqueue.task where is_ready") == [(1,)]
    assert value(database, "select llmqueue_internal.status_word('unsolved')") is None
    settle(database, 1)
    assert value(database, "select llmqueue_status from tasks where id = 1") == "solved"
    if done is not None:
        assert value(database, f"select {theirs}::text from tasks where id = 1") == done
    untouched = rows(database, "select xmin, ctid, * from tasks where prompt = 'Old'")
    assert [row[: len(old[0])] for row in untouched] == old
    assert "llmqueue_ready" in explain(database, READY)


@pytest.mark.parametrize(
    ("type_", "raw", "shown"),
    [
        ("text", "a", "a"),
        ("varchar(100)", "a", "a"),
        ("json", '{"a":  1}', '{"a":  1}'),
        ("jsonb", '[{"role": "user"}]', '[{"role": "user"}]'),
    ],
)
def test_prompt_and_answer_of_any_text_or_json_type(database: str, type_: str, raw: str, shown: str) -> None:
    run(
        database,
        f"create table tasks (id int primary key, prompt {type_}, answer {type_}, status text default 'unsolved')",
    )
    with psycopg.connect(database, autocommit=True) as conn:
        conn.execute("insert into tasks (id, prompt) values (1, %s)", (raw,))

    adopt(database)

    is_json = type_.startswith("json")
    assert rows(database, "select prompt_is_json, answer_is_json from llmqueue.mapping") == [(is_json, is_json)]
    assert task(database, 1)["prompt_text"] == shown
    settle(database, 1)
    assert value(database, "select answer::text from tasks") == '"42"'


def test_an_answer_too_long_for_their_varchar_raises_instead_of_being_cut(database: str) -> None:
    run(database, "create domain public.short as varchar(5)")
    run(
        database,
        "create table tasks (id int primary key, prompt text, answer public.short, status text default 'unsolved')",
    )
    run(database, "insert into tasks values (1, 'Why?')")

    adopt(database)

    with pytest.raises(psycopg.errors.StringDataRightTruncation):
        run(database, "update llmqueue.task set answer = llmqueue_internal.answer_value('much too long')")


def test_integer_codes_serve_as_words(database: str) -> None:
    run(database, "create table tasks (id int primary key, prompt text, answer text, status smallint default 0)")
    run(database, "insert into tasks (id, prompt) values (1, 'why')")
    codes = {"unsolved": "0", "running": "1", "solved": "2", "failed": "3", "cancelled": "4", "delayed": "5"}

    adopt(database, words=codes)

    settle(database, 1)
    assert value(database, "select status from tasks") == 2
    assert "llmqueue_ready" in explain(database, READY)


def test_unquoted_names_fold_like_sql_and_quoted_ones_do_not(database: str) -> None:
    run(database, SIMPLE)

    adopt(database, table="PUBLIC.Tasks", id_column="ID")

    assert value(database, "select columns ->> 'id' from llmqueue.mapping") == "id"


def test_a_table_outside_public_is_found_by_the_search_path(database: str) -> None:
    run(database, "create schema work", SIMPLE.replace("public.", "work."))
    run(
        database,
        "alter database "
        + value(database, "select quote_ident(current_database())")
        + " set search_path = work, public",
    )

    adopt(database, table="tasks")

    assert value(database, "select table_schema from llmqueue.mapping") == "work"
