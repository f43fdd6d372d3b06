"""A worker with only the rights of its role."""

from __future__ import annotations

from pathlib import Path

import psycopg
import pytest

from llmqueue.fake_backend import expected_answer
from llmqueue.install.rights import WORKER
from tests.support import processes
from tests.support.roles import member, with_roles

pytestmark = pytest.mark.system


def test_a_worker_with_the_least_rights_drains_the_table(
    installed: str, conn: psycopg.Connection, tmp_path: Path
) -> None:
    """Every function that a worker calls: also tokens, a model that refuses, a model that answers late, and the end."""
    with_roles(installed)
    conn.execute(
        "insert into llmqueue.model_config (model, rpm, tpm, max_output)"
        " values ('a', 60000, null, null), ('b', 60000, 100000000, 100)"
    )
    with conn.cursor().copy("copy tasks (prompt) from stdin") as copy:
        for number in range(200):
            copy.write_row((f"prompt {number}",))

    with (
        member(installed, WORKER) as dsn,
        processes.backend(tmp_path, "--any-model", "--speed", "50") as url,
    ):
        env = processes.environment(DATABASE_URL=dsn, BACKEND_URL=url, LEASE_S="2", LOG_FORMAT="json")
        with processes.workers(tmp_path, 2, "--drain", env=env) as started:
            codes = [worker.wait(120) for worker in started]
            output = "".join(worker.output for worker in started)

    assert codes == [0, 0], output
    found = conn.execute("select prompt, answer from tasks where status = 'solved'").fetchall()
    assert len(found) == 200
    assert [prompt for prompt, answer in found if answer != expected_answer(prompt)] == []
    assert "permission denied" not in output
    assert conn.execute("select count(*) from llmqueue.worker").fetchone() == (0,)
