"""A worker that is stopped before its drain is complete, and one whose schema is upgraded."""

from __future__ import annotations

import signal
from pathlib import Path

import psycopg
import pytest

from tests.support import processes
from tests.support.eventually import eventually
from tests.support.held import answer_to, held_backend

pytestmark = pytest.mark.system


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT])
def test_a_drain_that_is_stopped_says_so_and_ends_with_1(
    installed: str, conn: psycopg.Connection, tmp_path: Path, how: signal.Signals
) -> None:
    conn.execute("insert into llmqueue.model_config (model, rpm) values ('a', 1)")
    conn.execute("insert into tasks (prompt) select 'prompt ' || n from generate_series(1, 5) n")
    with processes.backend(tmp_path, "--any-model", "--instant") as url:
        env = processes.environment(DATABASE_URL=installed, BACKEND_URL=url)
        with processes.workers(tmp_path, 1, "--drain", env=env) as [worker]:
            eventually(lambda: '"attempt_ended"' in worker.output)
            assert worker.stop(how) == 1

    assert "stopped before it was drained" in worker.output
    assert "drained: nothing is left" not in worker.output


def test_a_drain_that_is_stopped_before_the_database_is_there_ends_with_1(tmp_path: Path) -> None:
    url = "postgresql://nobody@127.0.0.1:1/nothing"
    env = processes.environment(DATABASE_URL=url, BACKEND_URL="http://127.0.0.1:1")
    with processes.workers(tmp_path, 1, "--drain", env=env) as [worker]:
        eventually(lambda: "database_unreachable" in worker.output)
        assert worker.stop() == 1

    assert "stopped before it was drained" in worker.output


def test_an_upgrade_under_a_running_worker_costs_no_answer(
    installed: str, conn: psycopg.Connection, tmp_path: Path
) -> None:
    conn.execute("insert into llmqueue.model_config (model, rpm) values ('a', 6000)")
    conn.execute("insert into tasks (prompt) select 'prompt ' || n from generate_series(1, 8) n")
    with held_backend() as backend:
        env = processes.environment(DATABASE_URL=installed, BACKEND_URL=backend.url, DRAIN_S="120")
        with processes.workers(tmp_path, 1, env=env) as [worker]:
            eventually(lambda: len(backend.calls) == 8)
            with conn.transaction():
                conn.execute("insert into llmqueue.schema_version (version, name) values (99, 'of_the_future')")
                conn.execute(
                    "create or replace function llmqueue.oldest_program() returns integer language sql as 'select 99'"
                )
                conn.execute("""
                    do $$ declare f regprocedure; begin
                        for f in select oid from pg_proc
                                  where proname = 'claim' and pronamespace = 'llmqueue'::regnamespace
                        loop execute 'drop function ' || f || ' cascade'; end loop; end $$""")
            eventually(lambda: '"schema_outgrown"' in worker.output)
            conn.execute("insert into tasks (prompt) values ('for the next release')")
            backend.release(8)
            assert worker.wait(120) == 1

    rows = conn.execute("select prompt, answer, attempts from tasks where status = 'solved'").fetchall()
    assert len(rows) == 8
    assert [prompt for prompt, answer, attempts in rows if (answer, attempts) != (answer_to(str(prompt)), 1)] == []
    assert worker.output.count('"schema_outgrown"') == 1
    assert '"attempt_ended"' in worker.output.split('"schema_outgrown"')[1], "a call was in flight"
    assert "install the new release here too" in worker.output.strip().splitlines()[-1]
    assert "llmqueue init" not in worker.output
    assert "database_failed" not in worker.output
