from __future__ import annotations

import json
from datetime import timedelta

import psycopg
import pytest

from tests.support.cli import run_cli


def close(dsn: str, model: str, how_long: str) -> None:
    with psycopg.connect(dsn) as conn:
        conn.execute(
            "insert into llmqueue.model_state (model, cooldown_started_at, cooldown_until, cooldown_reason) values"
            " (%s, clock_timestamp(), clock_timestamp() + %s::interval, '429: too many')",
            [model, how_long],
        )


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
        ([], "llmqueue: nothing to set: give a limit, such as --rpm N (llmqueue models set --help names them all)"),
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
        conn.execute(f"insert into llmqueue.model_config (model, rpm) values ('m', {rpm})")


def test_pause_and_resume(installed: str) -> None:
    run_cli(installed, "models", "set", "m", "--rpm", "60")

    paused = run_cli(installed, "models", "pause", "m")
    assert (paused.code, paused.out) == (0, "m is paused. Resume it: llmqueue models resume m\n")
    assert config(installed)[0][3] is False

    assert run_cli(installed, "models", "resume", "m").out == "m is enabled\n"
    assert config(installed)[0][3] is True


def test_resume_opens_a_model_that_was_closed(installed: str) -> None:
    run_cli(installed, "models", "set", "m", "--rpm", "60")
    close(installed, "m", "1 hour")

    resumed = run_cli(installed, "models", "resume", "m")

    assert (resumed.code, resumed.out) == (0, "m is enabled, and open again\n")
    (row,) = json.loads(run_cli(installed, "models", "list", "--json").out)
    assert (row["cooldown_until"], row["cooldown_reason"]) == (None, None)
    assert run_cli(installed, "models", "resume", "m").out == "m is enabled\n"


def test_unknown_model_is_answered_with_the_known_ones(installed: str) -> None:
    assert run_cli(installed, "models", "pause", "x").err == (
        'llmqueue: there is no model "x". None is configured: llmqueue models set NAME --rpm N\n'
    )
    run_cli(installed, "models", "set", "m", "--rpm", "60")

    refused = run_cli(installed, "models", "pause", "x")

    assert (refused.code, refused.err) == (1, 'llmqueue: there is no model "x". Configured: m\n')


def test_list_is_tab_separated_when_piped_and_json_on_request(installed: str) -> None:
    run_cli(installed, "models", "set", "m", "--rpm", "60")

    (line,) = run_cli(installed, "models", "list").rows
    assert line[:9] == ["m", "true", "60", "0", "0", "0", "", "600.0", "1.0"]
    assert line[9:] == ["60", "", "0", "", "0", "", "0", "", "0", "", "", "", "retry", "auto", "20"]
    (row,) = json.loads(run_cli(installed, "models", "list", "--json").out)
    assert (row["model"], row["rpm"], row["calls_60s"], row["max_concurrency"]) == ("m", 60, 0, None)


def test_terminal_shows_what_is_in_force_beside_what_is_configured(
    installed: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "250")
    run_cli(installed, "models", "set", "m", "--rpm", "60")
    plain = run_cli(installed, "models", "list").out

    run_cli(installed, "models", "set", "m", "--tpm", "9000")
    close(installed, "m", "1 hour")
    with psycopg.connect(installed) as conn:
        conn.execute("update llmqueue.model_state set rpm_ceiling = 48, rpm_cut_at = clock_timestamp()")
    full = run_cli(installed, "models", "list").out

    for title in ("rpm now", "tokens in 60 s", "cooldown ends", "model m is in cooldown until"):
        assert title not in plain
        assert title in full
    for title in ("output in 60 s", "calls today", "tokens today", "max. now"):
        assert title not in full
    for value in ("48", "0 of 9,000", "because of 429: too many"):
        assert value in full
