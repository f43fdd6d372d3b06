from __future__ import annotations

import json

import psycopg
import pytest

from tests.support.cli import run_cli


@pytest.fixture
def dsn(installed: str) -> str:
    with psycopg.connect(installed, autocommit=True) as conn:
        conn.execute(
            "insert into llmqueue.model_config (model, rpm, enabled) values ('m', 60, true), ('off', 60, false)"
        )
        conn.execute(
            "insert into tasks (prompt, model) values"
            " ('a', 'm'), ('b', 'm'), ('c', null), ('d', 'off'), ('e', 'my model')"
        )
    return installed


def test_status_names_what_needs_a_hand_with_its_remedy(dsn: str) -> None:
    notes = [row[1] for row in run_cli(dsn, "status").rows if row[0] == "note"]

    assert notes == [
        "1 task for the model \"my model\", which nobody has configured. Run: llmqueue models set 'my model' --rpm N",
        '1 task waiting for "off", which is paused. Run: llmqueue models resume off',
        "no worker is running. Start one: llmqueue worker",
    ]


def test_status_lists_backlog_and_models(dsn: str) -> None:
    rows = run_cli(dsn, "status").rows

    assert [row[1:5] for row in rows if row[0] == "backlog"] == [
        ["(any)", "unsolved", "1", "false"],
        ["m", "unsolved", "2", "false"],
        ["my model", "unsolved", "1", "false"],
        ["off", "unsolved", "1", "false"],
    ]
    assert [row[6] for row in rows if row[0] == "backlog"] == ["3", "2", "", ""]
    assert [row[1:4] for row in rows if row[0] == "model"] == [["m", "0", "60"], ["off", "0", "60"]]


def test_default_pool_without_a_model_is_shown(installed: str) -> None:
    with psycopg.connect(installed, autocommit=True) as conn:
        conn.execute("insert into tasks (prompt) values ('a')")

    notes = json.loads(run_cli(installed, "status", "--json").out)["notes"]

    assert notes[0] == "1 task waiting, and no model may take them. Run: llmqueue models set NAME --rpm N"


def test_set_aside_rows_are_shown(dsn: str) -> None:
    with psycopg.connect(dsn, autocommit=True) as conn:
        conn.execute("insert into llmqueue.set_aside (task_id, step, reason) values (1, 'complete', 'too long')")

    shown = json.loads(run_cli(dsn, "status", "--json").out)

    assert shown["set_aside"] == {"tasks": 1, "example": "1", "reason": "too long"}
    assert any(note.startswith("1 set aside, since the row cannot be written (1: too long).")
               for note in shown["notes"])  # fmt: skip


def test_status_of_an_idle_database_is_quiet(installed: str) -> None:
    rows = run_cli(installed, "status").rows

    assert [row[0] for row in rows] == ["database"]
