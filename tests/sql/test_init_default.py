"""`init` on an empty database, and again on one that has it."""

from __future__ import annotations

import psycopg
import pytest

from llmqueue.db.mapping import read_mapping
from llmqueue.errors import AdoptionRefused, Failure, NotInitialised, SchemaTooNew
from llmqueue.install.adopt import AdoptionSpec, install
from llmqueue.install.columns import OUR_NAMES, STATUSES
from tests.support.adoption import adopt, rows, run, snapshot, task, value


def test_empty_database_gets_a_tasks_table_that_takes_a_prompt_only(database: str) -> None:
    adopt(database)

    run(database, "insert into tasks (prompt) values ('Why?')")

    assert rows(database, "select id, prompt, answer, status, priority, attempts, restarts from public.tasks") == [
        (1, "Why?", None, "unsolved", 0, 0, 0)
    ]
    found = task(database, 1)
    assert (found["lane"], found["rank"], found["due_at"], found["is_ready"]) == ("", 0, found["created_at"], True)


def test_view_has_the_columns_in_the_order_that_the_other_sql_expects(installed: str) -> None:
    columns = [
        name
        for (name,) in rows(
            installed,
            "select attname::text from pg_attribute where attrelid = 'llmqueue.task'::regclass and attnum > 0 "
            "order by attnum",
        )
    ]

    computed = ["prompt_text", "lane", "rank", "user_key", "due_at", "waiting_since"]
    computed += ["is_ready", "is_delayed", "is_running", "is_failed", "is_ended"]
    assert columns == ["id", "prompt", "answer", "status", *OUR_NAMES, *computed]


def test_mapping_is_stored_and_complete(installed: str) -> None:
    with psycopg.connect(installed, autocommit=True) as conn:
        mapping = read_mapping(conn)

    assert (mapping.label, mapping.key_type, mapping.own_status) == ("public.tasks", "bigint", False)
    assert mapping.columns["created_at"] == "created_at"
    assert mapping.words == {status: status for status in STATUSES}
    assert mapping.is_complete


def test_second_init_finds_nothing_to_change_and_changes_nothing(installed: str) -> None:
    before = snapshot(installed), value(installed, "select max(applied_at) from llmqueue.applied")

    lines = adopt(installed)

    assert lines == ["nothing to change: public.tasks is adopted and the schema is up to date"]
    assert (snapshot(installed), value(installed, "select max(applied_at) from llmqueue.applied")) == before


@pytest.mark.parametrize(
    "damage",
    [
        "drop function llmqueue_internal.mark_done(llmqueue.task_id[])",
        "drop view llmqueue.task cascade",
        """create or replace function llmqueue_internal.wake_up() returns trigger language plpgsql
           as 'begin return null; end'""",
        "drop index public.llmqueue_ready",
        "drop trigger llmqueue_wake_up on public.tasks",
        "alter table public.tasks drop column finished_at cascade",
    ],
)
def test_init_repairs_what_somebody_changed_by_hand(installed: str, damage: str) -> None:
    before = snapshot(installed)
    run(installed, damage)

    lines = adopt(installed)

    assert lines[-1] == "done: public.tasks is adopted"
    assert snapshot(installed) == before
    assert adopt(installed)[0].startswith("nothing to change")


def test_init_applies_functions_of_another_release(installed: str) -> None:
    run(installed, "update llmqueue.applied set source_hash = 'of another release' where part = 'functions'")

    lines = adopt(installed)

    assert lines == ["[1/1] create the functions", "done: public.tasks is adopted"]


def test_schema_newer_than_the_program_is_refused(installed: str) -> None:
    run(installed, "insert into llmqueue.schema_version (version, name) values (9999, 'from_the_future')")

    with pytest.raises(SchemaTooNew, match=r"is at version 9999, and this program knows \d+: a newer llmqueue has"):
        install(installed, AdoptionSpec())


def test_another_table_than_the_adopted_one_is_refused_with_the_way_out(installed: str) -> None:
    run(installed, "create table public.jobs (like public.tasks)")

    with pytest.raises(AdoptionRefused) as refusal:
        adopt(installed, table="public.jobs", words={"running": "in_progress"})

    assert str(refusal.value) == (
        "llmqueue has adopted public.tasks in this database, and these options differ: --table public.jobs; "
        "--word running=in_progress (now running). A database has one tasks table. To start again, which deletes "
        "limits and the attempt log but keeps the tasks as they are: drop schema llmqueue, llmqueue_internal cascade;"
    )


def test_the_same_options_again_are_no_difference(installed: str) -> None:
    same = {"table": "tasks", "id_column": "id", "queued_value": "unsolved", "columns": {"created_at": "created_at"}}

    assert adopt(installed, **same)[0].startswith("nothing to change")


def test_renamed_table_is_refused_with_the_way_out(installed: str) -> None:
    run(installed, "alter table public.tasks rename to jobs")

    with pytest.raises(
        AdoptionRefused, match=r"^cannot adopt public.tasks: the adopted table was dropped or renamed\. Restore it"
    ):
        adopt(installed)

    run(installed, "update llmqueue.mapping set table_name = 'jobs'")
    adopt(installed)
    assert adopt(installed) == ["nothing to change: public.jobs is adopted and the schema is up to date"]


def test_unfinished_init_is_not_taken_for_a_finished_one(installed: str) -> None:
    run(installed, "update llmqueue.mapping set is_complete = false")

    with (
        psycopg.connect(installed, autocommit=True) as conn,
        pytest.raises(NotInitialised, match=r"has not finished on public\.tasks: run it again"),
    ):
        read_mapping(conn)


def test_database_without_init_is_told_from_one_with(database: str) -> None:
    with (
        psycopg.connect(database, autocommit=True) as conn,
        pytest.raises(NotInitialised, match="this database has no llmqueue yet: run `llmqueue init`"),
    ):
        read_mapping(conn)


def test_a_view_of_the_owners_on_ours_is_not_dropped_by_an_upgrade(installed: str) -> None:
    run(installed, "create view public.mine as select id, is_ready from llmqueue.task")
    run(installed, "update llmqueue.applied set source_hash = 'of another release' where part = 'mapping'")

    with pytest.raises(Failure) as refusal:
        adopt(installed)

    assert str(refusal.value) == (
        "generate the view llmqueue.task and the functions that access your table "
        "(drop view if exists llmqueue.task): the database says: cannot drop view llmqueue.task because other objects "
        "depend on it: view public.mine depends on view llmqueue.task. "
        "This step was rolled back; remove the cause, then run init again."
    )
    assert value(installed, "select count(*) from public.mine") == 0
    run(installed, "drop view public.mine")
    adopt(installed)
    assert adopt(installed)[0].startswith("nothing to change")
