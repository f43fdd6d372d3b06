"""`init --dry-run`: a script for psql that does the same as `init`, and its warnings."""

from __future__ import annotations

import subprocess

import pytest

from llmqueue.install.adopt import AdoptionSpec, plan
from tests.support.adoption import SIMPLE, adopt, rows, run, snapshot, value
from tests.support.server import Server

TABLES: dict[str, tuple[str, AdoptionSpec]] = {
    "none": ("select", AdoptionSpec()),
    "simple": (SIMPLE, AdoptionSpec()),
    "row type in use": (SIMPLE + "; create table history (old tasks)", AdoptionSpec()),
    "uuid, quotes, own words": (
        """create schema "S"; create table "S"."My 'Tasks'" ("Key" uuid primary key, "Q" jsonb, "A" json,
        "State \\x :y" varchar(20) default 'it''s new', error text)""",
        AdoptionSpec(
            table='"S"."My \'Tasks\'"',
            id_column="Key",
            prompt_column="Q",
            answer_column="A",
            status_column="State \\x :y",
            queued_value="it's new",
            done_value="$$",
            words={"running": "\\:run"},
            columns={"error": "error", "run_at": 'when "at"'},
        ),
    ),
    "own status": (
        "create table tasks (id text primary key, prompt text, answer text, status boolean default false)",
        AdoptionSpec(own_status=True),
    ),
}


@pytest.mark.parametrize("kind", TABLES)
def test_the_script_run_by_psql_leaves_init_nothing_to_change(server: Server, database: str, kind: str) -> None:
    existing, spec = TABLES[kind]
    run(database, existing)

    script = plan(database, spec).script()
    done = subprocess.run(
        [str(server.bin_path / "psql"), "-X", "-q", "-v", "ON_ERROR_STOP=1", "-d", database],
        input=script,
        text=True,
        capture_output=True,
        timeout=60,
        check=False,
    )

    assert (done.returncode, done.stderr) == (0, "")
    assert plan(database, spec).steps == ()
    assert plan(database, spec).script().endswith("-- Nothing to change.\n")
    assert adopt(database)[0].startswith("nothing to change")


@pytest.mark.parametrize("kind", TABLES)
def test_the_script_makes_what_init_makes(server: Server, database: str, kind: str) -> None:
    existing, spec = TABLES[kind]
    run(database, existing)
    script = plan(database, spec).script()

    run(database, "create schema before_init")
    command = [str(server.bin_path / "psql"), "-X", "-q", "-d", database]
    subprocess.run(command, input=script, text=True, check=True, timeout=60, capture_output=True)
    by_script = snapshot(database)
    hashes = rows(database, "select part, source_hash, installed_hash from llmqueue.applied order by part")
    run(database, "drop schema llmqueue cascade", f"drop table {plan_label(spec)} cascade", "drop type if exists old")
    run(database, 'drop schema if exists "S" cascade', "drop table if exists history")
    run(database, existing)
    from llmqueue.install.adopt import install

    install(database, spec)

    assert snapshot(database) == by_script
    assert rows(database, "select part, source_hash, installed_hash from llmqueue.applied order by part") == hashes


def plan_label(spec: AdoptionSpec) -> str:
    return spec.table or "public.tasks"


def test_a_dry_run_changes_nothing_and_says_so(database: str) -> None:
    run(database, SIMPLE)
    before = snapshot(database)

    found = plan(database, AdoptionSpec())

    assert found.script().startswith(
        f"-- llmqueue init: public.tasks, {len(found.steps)} steps. Nothing has been changed.\n"
    )
    assert snapshot(database) == before


def test_warnings_name_what_new_columns_break_elsewhere(database: str) -> None:
    run(
        database,
        SIMPLE,
        "create table archive (like tasks)",
        "create function move() returns void language plpgsql as 'begin insert into archive select * from tasks; end'",
        "create function fill() returns void language plpgsql as "
        "'begin INSERT  INTO public.tasks VALUES (default, ''x''); end'",
        "create function read() returns void language plpgsql as 'declare t tasks%rowtype; begin null; end'",
        "create function fine() returns void language plpgsql as "
        "'begin insert into tasks (prompt) values (''x''); end'",
        "create publication shared for table tasks",
        "create table history (old tasks)",
        "alter table tasks enable row level security",
    )

    found = plan(database, AdoptionSpec()).warnings

    assert found == (
        (
            "the new columns affect COPY without a column list, INSERT … SELECT *, and code that reads rows by "
            "position. init cannot see the code of clients: look for such statements before you continue."
        ),
        (
            "these functions depend on the table's list of columns; name the columns in them: "
            "public.fill(), public.move(), public.read()."
        ),
        (
            "the table is published (shared): add the new columns at each subscriber first, "
            "or give the publication a list of columns."
        ),
        "the table's row type is the type of columns in public.history: their values gain the new fields.",
        (
            "row level security is enabled: llmqueue has the rights of the owner, who sees all rows; "
            "a role that reads llmqueue.task sees all rows too."
        ),
    )
    script = plan(database, AdoptionSpec()).script()
    assert "-- Warning: the table is published (shared)" in script
    assert value(database, "select to_regnamespace('llmqueue')") is None
