"""The worker's part in the limits: its own estimate of a prompt, and its reports of refusals."""

from __future__ import annotations

import json
from pathlib import Path

import psycopg
import pytest

from llmqueue.fake_backend.call_log import read_calls
from tests.support import processes

pytestmark = pytest.mark.system

Conn = psycopg.Connection[tuple[object, ...]]


def test_a_prompt_that_its_bytes_make_too_small_is_charged_in_full_before_it_is_sent(
    installed: str, conn: Conn, tmp_path: Path
) -> None:
    conn.execute("insert into llmqueue.model_config (model, rpm, tpm, max_output) values ('a', 6000, 100000, 10)")
    conn.execute("insert into tasks (prompt) select repeat('7', 400) || n from generate_series(10, 29) n")
    with processes.backend(tmp_path, "--any-model", "--instant") as url:
        drained = processes.run("worker", "--drain", env=processes.environment(DATABASE_URL=installed, BACKEND_URL=url))
    assert drained.returncode == 0, drained.stderr

    assert conn.execute("select count(*) from tasks where status = 'solved'").fetchone() == (20,)
    sent = conn.execute(
        "select char_class_estimate, input_charge from llmqueue.attempt where outcome = 'completed' order by fence"
    ).fetchall()
    assert {estimate for estimate, _ in sent} == {209}
    assert sent[0] == (209, 209)
    assert len(read_calls(tmp_path / "calls.jsonl")) == 20


def test_a_model_that_refuses_has_a_cooldown_in_one_line_and_answers_all_in_the_end(
    installed: str, conn: Conn, tmp_path: Path
) -> None:
    conn.execute("insert into llmqueue.model_config (model, rpm) values ('a', 6000)")
    conn.execute("insert into tasks (prompt) select '[[fault:429 x1]] ' || n from generate_series(1, 3) n")
    with processes.backend(tmp_path, "--any-model", "--instant") as url:
        env = processes.environment(DATABASE_URL=installed, BACKEND_URL=url, LOG_FORMAT="json")
        drained = processes.run("worker", "--drain", env=env)
    assert drained.returncode == 0, drained.stderr

    assert conn.execute("select count(*), sum(attempts) from tasks where status = 'solved'").fetchone() == (3, 3)
    assert conn.execute("select count(*) from llmqueue.attempt where outcome = 'refused'").fetchone() == (3,)
    lines = [json.loads(line) for line in drained.stderr.splitlines() if line.startswith("{")]
    cooldowns = [line for line in lines if line["event"] == "model_cooldown"]
    assert cooldowns
    assert {(line["model"], line["reason"], line["level"]) for line in cooldowns} == {("a", "rate_limited", "warning")}
    assert all(line["pause_s"] >= 1 for line in cooldowns)
