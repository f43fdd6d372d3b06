"""The database becomes unreachable under the worker, does not run yet, or refuses the worker."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
from psycopg.conninfo import make_conninfo

from llmqueue.fake_backend import expected_answer
from llmqueue.fake_backend.call_log import read_calls
from llmqueue.install.adopt import AdoptionSpec, install
from tests.support import processes
from tests.support.eventually import eventually
from tests.support.server import Server, control, start_server

pytestmark = pytest.mark.system


@pytest.fixture
def own_server(request: pytest.FixtureRequest) -> Iterator[Server]:
    """A server that the test may stop."""
    with start_server(int(request.config.getoption("--pg"))) as server:
        yield server


@pytest.mark.slow
def test_a_crash_of_the_database_costs_no_answer(own_server: Server, tmp_path: Path) -> None:
    dsn = own_server.dsn()
    install(dsn, AdoptionSpec())
    with psycopg.connect(dsn, autocommit=True) as conn:
        conn.execute("insert into llmqueue.model_config (model, rpm) values ('a', 6000)")
        conn.execute("insert into tasks (prompt) select 'prompt ' || n from generate_series(1, 600) n")
    with processes.backend(tmp_path, "--any-model", "--speed", "10") as url:
        env = processes.environment(DATABASE_URL=dsn, BACKEND_URL=url, LEASE_S="5")
        with processes.workers(tmp_path, 2, "--drain", env=env) as started:
            eventually(lambda: "completed" in started[0].output and "completed" in started[1].output)
            control(own_server, "stop", "-m", "immediate")
            eventually(lambda: all("database_unreachable" in process.output for process in started))
            control(own_server, "start")
            assert [process.wait(120) for process in started] == [0, 0], started[0].output[-3000:]

    with psycopg.connect(dsn, autocommit=True) as conn:
        rows = conn.execute("select id, prompt, answer, status, attempts from tasks").fetchall()
    assert {row[3] for row in rows} == {"solved"}
    assert [row[1] for row in rows if row[2] != expected_answer(row[1])] == []
    paid = Counter(call.key for call in read_calls(tmp_path / "calls.jsonl"))
    # An answer that came while the database was away is settled when it is back: nothing is paid for twice.
    assert max(paid.values()) == 1, [key for key, count in paid.items() if count > 1]
    for process in started:
        assert process.output.count('"database_unreachable"') <= 3


def test_a_worker_waits_for_a_database_that_starts_later(own_server: Server, tmp_path: Path) -> None:
    dsn = own_server.dsn()
    install(dsn, AdoptionSpec())
    control(own_server, "stop", "-m", "fast")
    with processes.backend(tmp_path, "--any-model", "--instant") as url:
        env = processes.environment(DATABASE_URL=dsn, BACKEND_URL=url)
        status = processes.run("status", env=env)
        with processes.workers(tmp_path, 1, "--drain", env=env) as [worker]:
            eventually(lambda: "database_unreachable" in worker.output)
            control(own_server, "start")
            assert worker.wait(60) == 0, worker.output
    assert status.returncode == 1
    assert status.stderr.startswith("llmqueue: cannot reach the database at socket")
    assert "Traceback" not in status.stderr + worker.output


def test_a_wrong_password_ends_a_worker_with_a_word_and_without_the_password(
    own_server: Server, tmp_path: Path
) -> None:
    with psycopg.connect(own_server.dsn(), autocommit=True) as conn:
        conn.execute("create role someone login password 'right'")
    hba = own_server.data_path / "pg_hba.conf"
    hba.write_text("local all someone scram-sha-256\n" + hba.read_text())
    control(own_server, "reload")
    dsn = make_conninfo(
        host=own_server.host, port=own_server.port, user="someone", password="wr0ng-secret", dbname="postgres"
    )
    for verb in ("worker", "status"):
        done = processes.run(verb, env=processes.environment(DATABASE_URL=dsn))
        assert done.returncode == 1
        assert 'refused user "someone": password authentication failed' in done.stderr
        assert "wr0ng-secret" not in done.stderr + done.stdout
        assert "Traceback" not in done.stderr


def test_a_database_without_init_or_with_a_newer_schema_is_refused(database: str, installed: str) -> None:
    bare = processes.run("worker", env=processes.environment(DATABASE_URL=database))
    assert bare.returncode == 1
    assert "has no llmqueue schema. Run: llmqueue init" in bare.stderr

    with psycopg.connect(installed, autocommit=True) as conn:
        conn.execute(
            "insert into llmqueue.schema_version (version, name, applied_at) values (9999, 'from_the_future', now())"
        )
        conn.execute(
            "create or replace function llmqueue.oldest_program() returns integer language sql as 'select 9999'"
        )
    newer = processes.run("worker", env=processes.environment(DATABASE_URL=installed))
    assert newer.returncode == 1
    assert "has llmqueue schema version 9999" in newer.stderr
    assert "Upgrade llmqueue." in newer.stderr


def test_an_unknown_setting_is_a_usage_error_that_names_the_right_one() -> None:
    done = processes.run("worker", env=processes.environment(DATABSE_URL="host=x"))
    assert done.returncode == 2
    assert done.stderr == "llmqueue: unknown setting LLMQUEUE_DATABSE_URL; did you mean LLMQUEUE_DATABASE_URL?\n"


def test_a_worker_started_twice_is_two_workers(installed: str, conn: psycopg.Connection, tmp_path: Path) -> None:
    with processes.backend(tmp_path, "--any-model", "--instant") as url:
        env = processes.environment(DATABASE_URL=installed, BACKEND_URL=url)
        with processes.workers(tmp_path, 2, env=env) as started:
            eventually(lambda: conn.execute("select count(*) from llmqueue.worker").fetchone()[0] == 2)
            assert [process.stop() for process in started] == [0, 0]
