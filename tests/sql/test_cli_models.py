from __future__ import annotations

import json
from datetime import timedelta

import psycopg
import pytest

from tests.support.cli import run_cli


def config(dsn: str) -> list[tuple[object, ...]]:
    with psycopg.connect(dsn) as conn:
        return conn.execute(
            "select model, rpm, max_concurrency, enabled, timeout from llmqueue.model_config order by 1"
        ).fetchall()


def test_set_creates_and_then_changes_only_what_is_given(installed: str) -> None:
    created = run_cli(installed, "models", "set", "m", "--rpm", "60", "--max-concurrency", "5", "--timeout", "30")
    assert config(installed) == [("m", 60, 5, True, timedelta(seconds=30))]

    changed = run_cli(installed, "models", "set", "m", "--max-concurrency", "none", "--disabled")

    assert (created.code, created.err) == (0, "")
    assert created.out == "m: 60 calls per minute, at most 5 calls in flight, timeout 30 s\n"
    assert changed.out == "m: 60 calls per minute, no limit on calls in flight, timeout 30 s, paused\n"
    assert config(installed) == [("m", 60, None, False, timedelta(seconds=30))]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--rpm", "-5"], "--rpm"),
        (["--rpm", "many"], "--rpm"),
        (["--rpm", "99999999999"], "--rpm"),
        (["--rpm", "5", "--max-concurrency", "-1"],
         "llmqueue: --max-concurrency must be a whole number of at least 0, or none (got '-1')"),
        (["--rpm", "5", "--timeout", "0"],
         "llmqueue: --timeout must be a number of seconds above 0 and at most a year (got 0.0)"),
        (["--timeout", "5"], 'llmqueue: model "m" is not configured yet: give its limit, --rpm N'),
        ([], "llmqueue: nothing to set: give --rpm, --max-concurrency, --timeout, --enabled or --disabled"),
    ],
)  # fmt: skip
def test_set_refuses_nonsense(installed: str, options: list[str], message: str) -> None:
    refused = run_cli(installed, "models", "set", "m", *options)

    assert refused.code == 2
    assert message in refused.err
    assert config(installed) == []


@pytest.mark.parametrize("rpm", ["-1", "'many'", "null"])
def test_sql_refuses_the_same_nonsense(installed: str, rpm: str) -> None:
    with psycopg.connect(installed) as conn, pytest.raises(psycopg.Error):
        conn.execute(f"insert into llmqueue.model_config (model, rpm) values ('m', {rpm})")  # type: ignore[call-overload]


def test_pause_and_resume(installed: str) -> None:
    run_cli(installed, "models", "set", "m", "--rpm", "60")

    paused = run_cli(installed, "models", "pause", "m")
    assert (paused.code, paused.out) == (0, "m is paused. Resume it: llmqueue models resume m\n")
    assert config(installed)[0][3] is False

    assert run_cli(installed, "models", "resume", "m").out == "m is enabled\n"
    assert config(installed)[0][3] is True


def test_unknown_model_is_answered_with_the_known_ones(installed: str) -> None:
    assert run_cli(installed, "models", "pause", "x").err == (
        'llmqueue: there is no model "x". None is configured: llmqueue models set NAME --rpm N\n'
    )
    run_cli(installed, "models", "set", "m", "--rpm", "60")

    refused = run_cli(installed, "models", "pause", "x")

    assert (refused.code, refused.err) == (1, 'llmqueue: there is no model "x". Configured: m\n')


def test_list_is_tab_separated_when_piped_and_json_on_request(installed: str) -> None:
    run_cli(installed, "models", "set", "m", "--rpm", "60")

    assert run_cli(installed, "models", "list").rows == [["m", "true", "60", "0", "0", "0", "", "600.0"]]
    (row,) = json.loads(run_cli(installed, "models", "list", "--json").out)
    assert (row["model"], row["rpm"], row["calls_60s"], row["max_concurrency"]) == ("m", 60, 0, None)
