"""The parts of an adopted table that stay unchanged."""

from __future__ import annotations

import uuid

from tests.support.adoption import SIMPLE, adopt, rows, run, settle, task, value


def test_their_foreign_keys_triggers_indexes_and_defaults_stay(database: str) -> None:
    run(
        database,
        SIMPLE,
        "create table runs (task bigint references tasks on delete cascade)",
        "create index by_prompt on tasks (prompt)",
        "create function touch() returns trigger language plpgsql as "
        "'begin new.prompt := upper(new.prompt); return new; end'",
        "create trigger touch before insert or update on tasks for each row execute function touch()",
        "insert into tasks (prompt) values ('why')",
        "insert into runs values (1)",
    )

    adopt(database)

    settle(database, 1)
    run(database, "insert into tasks (prompt) values ('how')", "delete from tasks where id = 1")
    assert rows(database, "select prompt from tasks") == [("HOW",)]
    assert rows(database, "select * from runs") == []
    assert value(database, "select indisvalid from pg_index where indexrelid = 'by_prompt'::regclass") is True


def test_solved_rows_are_not_touched_and_nothing_is_rewritten(database: str) -> None:
    run(
        database,
        SIMPLE,
        "insert into tasks (prompt, answer, status) select 'p', 'a', 'solved' from generate_series(1, 1000)",
    )
    before = rows(database, "select xmin::text, ctid::text, id, prompt, answer, status from tasks order by id")
    file = value(database, "select pg_relation_filenode('tasks')")

    adopt(database)

    assert rows(database, "select xmin::text, ctid::text, id, prompt, answer, status from tasks order by id") == before
    assert value(database, "select pg_relation_filenode('tasks')") == file


def test_an_insert_only_role_still_inserts(database: str) -> None:
    role = f"source_{uuid.uuid4().hex[:8]}"
    run(database, SIMPLE, f"create role {role}", f"grant insert (prompt) on tasks to {role}")
    try:
        adopt(database)

        run(database, f"set role {role}; insert into tasks (prompt) values ('from the source')")

        assert task(database, 1)["is_ready"] is True
    finally:
        run(database, f"drop owned by {role}", f"drop role {role}")


def test_a_generated_prompt_and_a_dependent_row_type_are_fine(database: str) -> None:
    run(
        database,
        "create table tasks (id int primary key, question text, answer text, status text default 'unsolved', "
        "prompt text generated always as ('Q: ' || question) stored)",
        "create table history (old tasks)",
        "create view open_tasks as select * from tasks",
        "insert into tasks (id, question) values (1, 'why')",
    )

    adopt(database)

    assert value(database, "select prompt from llmqueue.task") == "Q: why"
    settle(database, 1)
