"""`init` on a schema that is in use: migrations, an index of another definition, interruptions, several at once."""

from __future__ import annotations

import signal
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psycopg
import pytest

from llmqueue.db import connect, resources
from llmqueue.errors import Failure, SchemaTooNew
from llmqueue.install.adopt import AdoptionSpec, install, plan
from llmqueue.install.steps import Step
from tests.support import processes
from tests.support.adoption import adopt, rows, run, snapshot, value
from tests.support.eventually import eventually
from tests.support.releases import Release, next_release
from tests.support.server import Server
from tests.support.sql import Queue
from tools import schema

READY = "index llmqueue_ready"
OTHER = "create index llmqueue_ready on tasks (id) where status = 'unsolved'"


@pytest.fixture
def next_sql(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Release:
    """A next release, whose SQL `install` and `plan` of this process use."""
    release = next_release(tmp_path / "next")
    monkeypatch.setattr(resources, "sql_dir", lambda: release.sql)
    return release


def versions(dsn: str) -> list[int]:
    return [version for (version,) in rows(dsn, "select version from llmqueue.schema_version order by 1")]


def dump(dsn: str) -> str:
    with psycopg.connect(dsn, autocommit=True) as conn:
        return schema.dump(conn)


def test_migrations_functions_and_views_of_an_upgrade_are_one_transaction(installed: str, next_sql: Release) -> None:
    before = versions(installed)
    next_sql.add_migration("add_one", "create table llmqueue.one (n integer);")
    next_sql.add_migration("drop_a_function", "drop function llmqueue.leave(uuid);")
    next_sql.edit(
        "sql/api/leave.sql",
        "llmqueue.leave(p_worker uuid)",
        "llmqueue.leave(p_worker uuid, p_why text default '')",
    )

    lines = adopt(installed)

    assert lines == [
        f"[1/1] upgrade llmqueue's schema to version {before[-1] + 1}, {before[-1] + 2}, while workers run",
        "done: public.tasks is adopted",
    ]
    assert versions(installed) == [*before, before[-1] + 1, before[-1] + 2]
    assert value(installed, "select pronargs from pg_proc where proname = 'leave'") == 2
    assert adopt(installed) == ["nothing to change: public.tasks is adopted and the schema is up to date"]


def test_a_migration_that_fails_is_named_and_leaves_nothing_behind(installed: str, next_sql: Release) -> None:
    before, known = dump(installed), versions(installed)
    next_sql.add_migration("fine", "create table llmqueue.one (n integer); drop function llmqueue.leave(uuid);")
    broken = next_sql.add_migration("broken", "create table llmqueue.two (n integer); select 1 / 0;")

    with pytest.raises(Failure) as failure:
        adopt(installed)

    assert f"(schema/{broken.name}): the database says: division by zero. This step was rolled back" in str(
        failure.value
    )
    assert (dump(installed), versions(installed)) == (before, known)
    broken.write_text("create table llmqueue.two (n integer);")
    adopt(installed)
    assert versions(installed)[-2:] == [known[-1] + 1, known[-1] + 2]


def test_a_migration_that_fails_on_an_empty_database_leaves_those_before_it(database: str, next_sql: Release) -> None:
    broken = next_sql.add_migration("broken", "create table llmqueue.two (n integer); select 1 / 0;")

    with pytest.raises(Failure, match="division by zero"):
        adopt(database)

    assert versions(database) == list(range(1, next_sql.version))
    assert value(database, "select to_regclass('llmqueue.two')") is None
    broken.unlink()
    assert adopt(database)[-1] == "done: public.tasks is adopted"


def test_an_init_that_is_killed_inside_a_migration_can_be_run_again(installed: str, tmp_path: Path) -> None:
    release = next_release(tmp_path)
    known = versions(installed)
    slow = release.add_migration("slow", "create table llmqueue.one (n integer); select pg_sleep(2);")
    env = release.environment(DATABASE_URL=installed)
    init = processes.start(tmp_path / "init.out", "init", env=env)
    eventually(lambda: rows(installed, "select from pg_stat_activity where wait_event = 'PgSleep'"))

    assert init.stop(signal.SIGKILL) == -signal.SIGKILL
    assert value(installed, "select to_regclass('llmqueue.one')") is None
    slow.write_text("create table llmqueue.one (n integer);")
    again = release.run("init", env=env)

    assert again.stdout.endswith("done: public.tasks is adopted\n")
    assert versions(installed) == [*known, known[-1] + 1]


def test_twenty_at_once_in_the_middle_of_the_versions_are_harmless(installed: str, next_sql: Release) -> None:
    next_sql.add_migration("add_one", "create table llmqueue.one (n integer);")
    run(installed, f"update llmqueue.applied set source_hash = 'other' where part = '{READY}'")

    with ThreadPoolExecutor(20) as pool:
        all_lines = list(pool.map(lambda _: adopt(installed), range(20)))

    assert sum(lines[-1].startswith("done") for lines in all_lines) == 1
    assert sum(lines[-1].startswith("nothing to change") for lines in all_lines) == 19
    assert versions(installed) == sorted(set(versions(installed)))
    assert value(installed, "select bool_and(indisvalid) from pg_index where indrelid = 'tasks'::regclass") is True


def test_the_dry_run_of_an_upgrade_run_by_psql_leaves_nothing_to_change(
    server: Server, installed: str, next_sql: Release
) -> None:
    next_sql.add_migration("drop_a_function", "drop function llmqueue.leave(uuid); create table llmqueue.one ();")
    run(installed, f"update llmqueue.applied set source_hash = 'other' where part = '{READY}'")
    before = snapshot(installed)

    script = plan(installed, AdoptionSpec()).script()

    assert snapshot(installed) == before
    psql = [str(server.bin_path / "psql"), "-X", "-q", "-v", "ON_ERROR_STOP=1", "-d", installed]
    done = subprocess.run(psql, input=script, text=True, capture_output=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert adopt(installed)[0].startswith("nothing to change")


def test_an_upgrade_gives_way_to_a_long_transaction_and_tries_again(installed: str, next_sql: Release) -> None:
    next_sql.add_migration("widen", "alter table llmqueue.worker add column more text;")
    lines: list[str] = []
    with psycopg.connect(installed) as long, ThreadPoolExecutor(1) as pool:
        long.execute("select from llmqueue.worker")
        started = pool.submit(install, installed, AdoptionSpec(), report=lines.append)
        eventually(lambda: any(line.startswith("waiting for the end of") for line in lines))
        with psycopg.connect(installed, autocommit=True) as other:
            other.execute("set statement_timeout = '5s'")
            other.execute("select from llmqueue.worker")
        assert not started.done()
        long.commit()
        started.result(timeout=60)

    assert lines[-1] == "done: public.tasks is adopted"


# --- which programs a newer schema serves ---------------------------------------------------------------------------


def newer(installed: str, oldest: str) -> None:
    run(
        installed,
        "insert into llmqueue.schema_version (version, name) values (9999, 'of_the_future')",
        f"create or replace function llmqueue.oldest_program() returns integer language sql as 'select {oldest}'",
    )


def test_a_newer_schema_that_still_serves_this_program_is_taken(installed: str) -> None:
    newer(installed, str(connect.newest_version()))

    with psycopg.connect(installed, autocommit=True) as conn:
        connect.require_schema(conn)
    with pytest.raises(SchemaTooNew):
        adopt(installed)  # what is forward stays forward


@pytest.mark.parametrize("does_say", [True, False])
def test_a_newer_schema_that_serves_this_program_no_more_is_refused(installed: str, does_say: bool) -> None:
    newer(installed, str(connect.newest_version() + 1))
    if not does_say:
        run(installed, "drop function llmqueue.oldest_program()")

    with psycopg.connect(installed, autocommit=True) as conn, pytest.raises(SchemaTooNew, match="Upgrade llmqueue"):
        connect.require_schema(conn)


# --- an index of another definition ---------------------------------------------------------------------------------


def with_another_ready_index(dsn: str) -> None:
    run(
        dsn,
        "drop index llmqueue_ready",
        OTHER,
        f"update llmqueue.applied set source_hash = 'other' where part = '{READY}'",
    )


def test_an_index_is_replaced_and_there_is_a_valid_one_after_each_step(installed: str) -> None:
    expected = snapshot(installed)
    with_another_ready_index(installed)
    steps: list[str] = []

    def look(step: Step) -> None:
        steps.append(step.key)
        assert value(installed, "select indisvalid from pg_index where indexrelid = 'llmqueue_ready'::regclass") is True

    install(installed, AdoptionSpec(), after_step=look)

    assert steps == ["indexes", "index llmqueue_ready_new", "swap llmqueue_ready"]
    assert snapshot(installed) == expected
    assert adopt(installed)[0].startswith("nothing to change")


class Interrupted(Exception):
    """Stands for a kill between two steps."""


@pytest.mark.parametrize("after", [1, 2])
def test_a_replacement_that_was_interrupted_between_steps_goes_on(installed: str, after: int) -> None:
    expected = snapshot(installed)
    with_another_ready_index(installed)

    def interrupt(step: Step) -> None:
        raise Interrupted

    for _ in range(after):
        with pytest.raises(Interrupted):
            install(installed, AdoptionSpec(), after_step=interrupt)
    adopt(installed)

    assert snapshot(installed) == expected
    assert rows(installed, "select from llmqueue.applied where part like '%_new'") == []


def test_a_replacement_that_was_interrupted_in_its_build_is_healed_while_the_old_one_serves(installed: str) -> None:
    expected = snapshot(installed)
    with_another_ready_index(installed)
    with psycopg.connect(installed) as reader, ThreadPoolExecutor(1) as pool:
        reader.execute("set transaction isolation level repeatable read")
        reader.execute("select 1")
        started = pool.submit(adopt, installed)
        builder = (
            "select pid from pg_stat_activity where datname = current_database() and wait_event_type = 'Lock' "
            "and query like 'create index concurrently%'"
        )
        eventually(lambda: rows(installed, builder))
        run(installed, f"select pg_terminate_backend(({builder}))")
        assert started.exception(timeout=30) is not None
    valid = dict(
        rows(installed, "select indexrelid::regclass::text, indisvalid from pg_index where indisprimary is false")
    )
    assert (valid["llmqueue_ready"], valid["llmqueue_ready_new"]) == (True, False)

    lines = adopt(installed)

    assert lines[0].endswith("drop the index llmqueue_ready_new, left invalid by an interrupted build")
    assert snapshot(installed) == expected


def test_the_index_of_open_attempts_is_replaced_beside_the_workers(installed: str) -> None:
    old = "create index attempt_open on llmqueue.attempt (model, worker) include (is_hot) where ended_at is null"
    run(installed, "drop index llmqueue.attempt_running", old)

    with psycopg.connect(installed, autocommit=True) as conn:
        queue = Queue(conn, now=None)
        queue.model("m", max_concurrency=2, hot_share=0)
        queue.add(5)
        assert len(queue.claim().grants) == 2

    lines = adopt(installed)

    assert lines == [
        "[1/2] build the index attempt_running of the attempt log, without blocking workers",
        "[2/2] drop the index attempt_open, which attempt_running replaces",
        "done: public.tasks is adopted",
    ]
    assert value(installed, "select to_regclass('llmqueue.attempt_open')") is None
    assert adopt(installed)[0].startswith("nothing to change")


def test_an_index_of_open_attempts_whose_build_was_interrupted_is_built_anew(installed: str) -> None:
    run(installed, "update pg_index set indisvalid = false where indexrelid = 'llmqueue.attempt_running'::regclass")

    lines = adopt(installed)

    assert lines[0].endswith("drop the index attempt_running, left invalid by an interrupted build")
    assert value(installed, "select indisvalid from pg_index where indexrelid = 'llmqueue.attempt_running'::regclass")
    assert adopt(installed)[0].startswith("nothing to change")


def test_a_replacement_from_yet_another_definition_is_not_taken(installed: str) -> None:
    expected = snapshot(installed)
    with_another_ready_index(installed)
    run(installed, "create index llmqueue_ready_new on tasks (prompt)")

    lines = adopt(installed)

    assert lines[0].endswith("drop the index llmqueue_ready_new, no longer needed")
    assert snapshot(installed) == expected
    assert "coalesce" in value(installed, "select lower(pg_get_indexdef('llmqueue_ready'::regclass))")


def test_the_index_of_open_attempts_is_built_before_the_functions_that_need_it(
    installed: str, next_sql: Release
) -> None:
    next_sql.add_migration("add_one", "create table llmqueue.one (n integer);")
    old = "create index attempt_open on llmqueue.attempt (model, worker) include (is_hot) where ended_at is null"
    run(installed, "drop index llmqueue.attempt_running", old)

    keys = [step.key for step in plan(installed, AdoptionSpec()).steps]

    assert (keys[0], keys[-1]) == ("index attempt_running", "drop attempt_open")
    assert len(keys) == 3
