"""`init` beside others: locks, interruptions, broken indexes, several at once."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import psycopg
import pytest

from llmqueue.errors import AdoptionRefused, DatabaseUnreachable, Failure
from llmqueue.install.adopt import AdoptionSpec, install, plan
from llmqueue.install.steps import Step
from tests.support.adoption import SIMPLE, adopt, rows, run, snapshot, value


class Interrupted(Exception):
    """Stands for a kill between two steps."""


def test_interrupted_after_every_step_init_goes_on_where_it_stopped(database: str) -> None:
    run(database, SIMPLE, "insert into tasks (prompt) values ('Why?')")
    expected = [step.key for step in plan(database, AdoptionSpec()).steps]
    done: list[str] = []

    def interrupt(step: Step) -> None:
        done.append(step.key)
        raise Interrupted

    for _ in expected:
        with pytest.raises(Interrupted):
            install(database, AdoptionSpec(), after_step=interrupt)

    assert done == expected
    assert adopt(database) == ["nothing to change: public.tasks is adopted and the schema is up to date"]
    assert value(database, "select is_ready from llmqueue.task") is True


def test_interrupted_in_the_middle_of_an_index_the_rest_is_healed(database: str) -> None:
    run(database, SIMPLE, "insert into tasks (prompt) select 'p' from generate_series(1, 1000)")
    # A reader of old makes CREATE INDEX CONCURRENTLY wait, after it has put its invalid index into the catalog.
    with psycopg.connect(database) as reader, ThreadPoolExecutor(1) as pool:
        reader.execute("set transaction isolation level repeatable read")
        reader.execute("select 1")
        started = pool.submit(adopt, database)
        pid = _wait_for(
            database,
            "select pid from pg_stat_activity where datname = current_database() and wait_event_type = 'Lock' "
            "and query like 'create index concurrently%'",
        )
        run(database, f"select pg_terminate_backend({pid})")
        with pytest.raises(DatabaseUnreachable):
            started.result(timeout=30)
    assert value(database, "select indisvalid from pg_index where indexrelid = 'llmqueue_ready'::regclass") is False

    lines = adopt(database)

    assert lines[0].endswith("drop the index llmqueue_ready, left invalid by an interrupted build")
    assert value(database, "select bool_and(indisvalid) from pg_index where indrelid = 'tasks'::regclass") is True
    assert len(rows(database, "select from pg_index where indrelid = 'tasks'::regclass")) == 6


def test_a_valid_index_from_other_words_is_replaced(installed: str) -> None:
    run(installed, "update llmqueue.applied set source_hash = 'other' where part = 'index llmqueue_ready'")

    lines = adopt(installed)

    assert lines == [
        "[1/3] record the definitions of the indexes",
        "[2/3] build the index that will replace llmqueue_ready, without blocking writers",
        "[3/3] replace the old llmqueue_ready by the new one",
        "done: public.tasks is adopted",
    ]


def test_init_waits_for_a_long_transaction_and_says_so_while_others_go_on(database: str) -> None:
    run(database, SIMPLE)
    with psycopg.connect(database) as long, ThreadPoolExecutor(1) as pool:
        pid = long.info.backend_pid
        long.execute("insert into tasks (prompt) values ('not yet committed')")
        lines: list[str] = []
        started = pool.submit(install, database, AdoptionSpec(), report=lines.append)
        _until(lambda: any(line.startswith("waiting") for line in lines))
        slowest = max(_timed_insert(database) for _ in range(100))
        assert not started.done()
        long.commit()
        started.result(timeout=60)

    assert slowest < 5, "held up for as long as init waits"
    (waiting, *_) = [line for line in lines if line.startswith("waiting")]
    assert waiting.startswith(
        f"waiting for the end of a long transaction on public.tasks; blocked by pid {pid} (idle in "
    )
    assert waiting.endswith("): insert into tasks (prompt) values ('not yet committed')")
    assert value(database, "select count(*) from llmqueue.task where is_ready") == 101


def test_init_gives_up_after_the_time_given_and_keeps_nothing_of_the_step(database: str) -> None:
    run(database, SIMPLE)
    with psycopg.connect(database) as long:
        pid = long.info.backend_pid
        long.execute("lock table tasks in share mode")
        with pytest.raises(AdoptionRefused) as refusal:
            adopt(database, lock_wait_s=0.5)

    message = str(refusal.value)
    assert message.startswith(
        "add 16 columns to public.tasks, without a rewrite: within 0.5 s there was always a long transaction on "
        f"public.tasks; blocked by pid {pid} ("
    )
    assert message.endswith(
        "This step was rolled back. End that transaction, or run init again with a longer --lock-wait."
    )
    assert rows(database, "select from pg_attribute where attrelid = 'tasks'::regclass and attname = 'fence'") == []
    assert adopt(database)[-1] == "done: public.tasks is adopted"


def test_a_second_init_waits_for_the_first_and_finds_all_done(database: str) -> None:
    run(database, SIMPLE)
    first_may_go_on, lines = threading.Event(), list[str]()

    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(install, database, AdoptionSpec(), after_step=lambda _step: first_may_go_on.wait(30))  # type: ignore[arg-type]
        _until(lambda: value(database, "select to_regclass('llmqueue.mapping') is not null"))
        second = pool.submit(install, database, AdoptionSpec(), report=lines.append)
        _until(lambda: len(lines) == 1)
        first_may_go_on.set()
        first.result(timeout=60)
        second.result(timeout=60)

    assert lines == [
        "another llmqueue init runs on this database: waiting for its end",
        "nothing to change: public.tasks is adopted and the schema is up to date",
    ]


@pytest.mark.parametrize("has_table", [True, False])
def test_twenty_at_once_are_harmless(database: str, has_table: bool) -> None:
    if has_table:
        run(database, SIMPLE)

    with ThreadPoolExecutor(20) as pool:
        all_lines = list(pool.map(lambda _: adopt(database), range(20)))

    assert sum(lines[-1].startswith("done") for lines in all_lines) == 1
    assert sum(lines[-1].startswith("nothing to change") for lines in all_lines) == 19
    assert value(database, "select count(*) from llmqueue.mapping where is_complete") == 1


def test_a_statement_that_fails_is_named_and_its_step_leaves_nothing(database: str) -> None:
    run(
        database,
        SIMPLE,
        "create function no() returns event_trigger language plpgsql as "
        "'begin if tg_tag = ''ALTER TABLE'' then raise exception ''frozen until Monday''; end if; end'",
        "create event trigger frozen on ddl_command_start execute function no()",
    )

    with pytest.raises(Failure, match=r"^\w+ .*: the database says: frozen until Monday\. This step was rolled back"):
        adopt(database)

    run(database, "drop event trigger frozen")
    assert adopt(database)[-1] == "done: public.tasks is adopted"


def test_a_plan_changes_nothing(database: str) -> None:
    run(database, SIMPLE)
    before = snapshot(database)

    found = plan(database, AdoptionSpec())

    assert (found.table, found.steps[0].key, found.steps[-1].key) == ("public.tasks", "schema", "complete")
    assert snapshot(database) == before


def _timed_insert(dsn: str) -> float:
    with psycopg.connect(dsn, autocommit=True) as conn:
        start = time.monotonic()
        conn.execute("insert into tasks (prompt) values ('beside')")
        return time.monotonic() - start


def _wait_for(dsn: str, query: str) -> object:
    deadline = time.monotonic() + 30
    while not (found := rows(dsn, query)):
        assert time.monotonic() < deadline, "not within 30 s"
        time.sleep(0.01)
    return found[0][0]


def _until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline, "not within 30 s"
        time.sleep(0.01)
