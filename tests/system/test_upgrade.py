"""Workers of two releases side by side, while `init` upgrades the schema under their load."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psycopg
import pytest

from llmqueue.fake_backend import expected_answer
from llmqueue.fake_backend.call_log import read_calls, worst_window
from tests.support import processes
from tests.support.eventually import eventually
from tests.support.processes import Process
from tests.support.releases import Release, last_release, next_release, program_of

pytestmark = pytest.mark.system

WINDOW_S = 2.0
RPM = 80  # calls per window: 40 a second and model
MODELS = ("a", "b")

# What a release may do to what its predecessor's workers call: new signatures, more columns, a wider result type.
WIDEN = """
do $$ declare f regprocedure; begin
    for f in select oid from pg_proc where proname in ('claim', 'settle') and pronamespace = 'llmqueue'::regnamespace
    loop execute 'drop function ' || f; end loop;
end $$;
alter type llmqueue_internal.claim_row add attribute of_the_next_release text;
alter table llmqueue.attempt add column of_the_next_release text;
alter table llmqueue.worker add column of_the_next_release integer not null default 0;
"""


def set_up(conn: psycopg.Connection[Any]) -> None:
    conn.execute("create sequence fed")
    conn.execute("update llmqueue.limiter set window_s = %s", (WINDOW_S,))
    for model in MODELS:
        conn.execute("insert into llmqueue.model_config (model, rpm) values (%s, %s)", (model, RPM))


def add_tasks(conn: psycopg.Connection[Any], how_many: int) -> None:
    conn.execute(
        "insert into tasks (prompt) select 'prompt ' || nextval('fed') from generate_series(1, %s)", (how_many,)
    )


@contextmanager
def load(dsn: str) -> Iterator[None]:
    """Keeps a backlog of at least a second's worth for as long as it lasts."""
    stop = threading.Event()

    def feed() -> None:
        with psycopg.connect(dsn, autocommit=True) as conn:
            while not stop.wait(0.05):
                add_tasks(conn, 10)
                while not stop.wait(0.02) and count_ready(conn) > 2 * RPM:
                    pass

    feeder = threading.Thread(target=feed)
    feeder.start()
    try:
        yield
    finally:
        stop.set()
        feeder.join()


def count_ready(conn: psycopg.Connection[Any]) -> int:
    (ready,) = conn.execute("select count(*) from tasks where status = 'unsolved'").fetchone() or (0,)
    return int(ready)


def completed_by(conn: psycopg.Connection[Any], process: Process, since: Any = "-infinity") -> int:
    """How many attempts of this process, granted since then, have ended well."""
    query = """
        select count(*) from llmqueue.attempt a join llmqueue.worker w using (worker)
         where w.name like %s and a.outcome = 'completed' and a.granted_at > %s
    """
    (count,) = conn.execute(query, (f"%:{process.popen.pid}", since)).fetchone() or (0,)
    return int(count)


def now(conn: psycopg.Connection[Any]) -> Any:
    return (conn.execute("select clock_timestamp()").fetchone() or (None,))[0]


def are_all_solved(conn: psycopg.Connection[Any]) -> bool:
    return conn.execute("select count(*) from tasks where status <> 'solved'").fetchone() == (0,)


def assert_nothing_lost_nothing_doubled(conn: psycopg.Connection[Any], folder: Path) -> None:
    tasks = conn.execute("select prompt, answer, attempts from tasks").fetchall()
    assert [row for row in tasks if row[1:] != (expected_answer(row[0]), 1)] == []
    outcomes = dict(conn.execute("select outcome, count(*) from llmqueue.attempt group by 1").fetchall())
    assert outcomes["completed"] == len(tasks)
    assert set(outcomes) <= {"completed", "released"}  # a grant that waited for the upgrade may have come too late
    eventually(lambda: len(read_calls(folder / "calls.jsonl")) >= len(tasks))  # the backend's log is a moment behind
    calls = read_calls(folder / "calls.jsonl")
    assert len(calls) == len(tasks)
    for model in MODELS:
        arrivals = [call.arrived_monotonic for call in calls if call.model == model]
        assert worst_window(arrivals, WINDOW_S) <= RPM


def test_a_worker_of_the_previous_release_and_one_of_this_through_an_upgrade_under_load(
    database: str, tmp_path: Path
) -> None:
    old = last_release(tmp_path / "old")
    assert program_of(old).startswith(str(old.folder))
    with processes.backend(tmp_path, "--any-model", "--speed", "20") as url:
        settings = {"DATABASE_URL": database, "BACKEND_URL": url}
        old.run("init", env=old.environment(**settings))
        with psycopg.connect(database, autocommit=True) as conn:
            set_up(conn)
            with processes.workers(tmp_path, 1, env=old.environment(**settings)) as [before]:
                with load(database):
                    eventually(lambda: completed_by(conn, before) > 50)
                    upgrade = processes.run("init", env=processes.environment(**settings))
                    assert upgrade.returncode == 0, upgrade.stdout + upgrade.stderr
                    upgraded_at = now(conn)
                    after = processes.start(tmp_path / "new.out", "worker", env=processes.environment(**settings))
                    eventually(lambda: completed_by(conn, after, upgraded_at) > 20)
                    eventually(lambda: completed_by(conn, before, upgraded_at) > 20)
                try:
                    eventually(lambda: are_all_solved(conn))
                    assert before.stop() == 0, before.output[-3000:]
                    assert after.stop() == 0, after.output[-3000:]
                finally:
                    after.stop(signal.SIGKILL)

            assert '"schema_outgrown"' not in before.output
            assert_nothing_lost_nothing_doubled(conn, tmp_path)


def test_a_worker_of_this_release_works_on_when_the_next_one_changes_what_it_calls(
    installed: str, conn: psycopg.Connection[Any], tmp_path: Path
) -> None:
    following = release_after_this_one(tmp_path)
    set_up(conn)
    with processes.backend(tmp_path, "--any-model", "--speed", "20") as url:
        settings = {"DATABASE_URL": installed, "BACKEND_URL": url}
        env, next_env = processes.environment(**settings), following.environment(**settings)
        with processes.workers(tmp_path, 1, env=env) as [before]:
            with load(installed):
                eventually(lambda: completed_by(conn, before) > 50)
                lines = following.run("init", env=next_env).stdout
                assert "upgrade llmqueue's schema" in lines
                assert "replace the old llmqueue_oldest by the new one" in lines
                upgraded_at = now(conn)
                # also one that starts only now, as after a crash of its machine
                late = processes.start(tmp_path / "late.out", "worker", env=env)
                after = processes.start(tmp_path / "next.out", "worker", env=next_env)
                workers = (before, late, after)
                eventually(lambda: min(completed_by(conn, worker, upgraded_at) for worker in workers) > 5)
            try:
                eventually(lambda: are_all_solved(conn))
                assert [worker.stop() for worker in workers] == [0, 0, 0], late.output[-3000:]
            finally:
                for worker in (late, after):
                    worker.stop(signal.SIGKILL)

    assert '"schema_outgrown"' not in before.output
    assert_nothing_lost_nothing_doubled(conn, tmp_path)


def test_a_release_that_serves_this_one_no_more_refuses_it_at_its_start(
    installed: str, conn: psycopg.Connection[Any], tmp_path: Path
) -> None:
    following = release_after_this_one(tmp_path)
    (following.sql / "api" / "oldest_program.sql").write_text(
        "create or replace function llmqueue.oldest_program() returns integer language sql immutable as "
        f"$$ select {following.version} $$;"
    )
    env = {"DATABASE_URL": installed, "BACKEND_URL": "http://127.0.0.1:1"}
    following.run("init", env=following.environment(**env))

    refused = processes.run("worker", env=processes.environment(**env))

    assert refused.returncode == 1
    assert f"this llmqueue knows {following.version - 1}. Upgrade llmqueue." in refused.stderr


def release_after_this_one(folder: Path) -> Release:
    """Its claim and settle have another parameter, its claim returns more, and an index has another definition."""
    release = next_release(folder / "next")
    release.add_migration("widen", WIDEN)
    parameter = ", p_of_the_next_release text default null)\nreturns "
    for name, result in (("claim", "setof llmqueue_internal.claim_row"), ("settle", "table (fence")):
        release.edit(f"sql/api/{name}.sql", f")\nreturns {result}", parameter + result)
    release.edit(
        "src/llmqueue/install/mapping_sql.py",
        'sql.SQL("({}), ({}), {}").format(over.lane, over.waiting_since, key)',
        'sql.SQL("({}), ({}), {}, ({})").format(over.lane, over.waiting_since, key, over.rank)',
    )
    return release
