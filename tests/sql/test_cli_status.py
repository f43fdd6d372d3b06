from __future__ import annotations

import json
import re

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


def notes(dsn: str) -> list[str]:
    return list(json.loads(run_cli(dsn, "status", "--json").out)["notes"])


def test_models_without_weight_leave_the_default_pool_empty(installed: str) -> None:
    with psycopg.connect(installed, autocommit=True) as conn:
        conn.execute("insert into llmqueue.model_config (model, rpm, weight) values ('m', 60, 0)")
        conn.execute("insert into tasks (prompt) values ('a')")

    assert notes(installed)[0] == (
        "1 task waiting that name no model, and no model that may take them has a weight. "
        "Run: llmqueue models set m --weight 1"
    )


def test_a_pool_is_fine_while_one_of_its_models_is(dsn: str) -> None:
    with psycopg.connect(dsn, autocommit=True) as conn:
        conn.execute("insert into llmqueue.pool_member (pool, model) values ('my model', 'm'), ('my model', 'off')")
    assert not any("my model" in note for note in notes(dsn))

    with psycopg.connect(dsn, autocommit=True) as conn:
        conn.execute("update llmqueue.pool_member set model = 'gone' where model = 'm'")
    assert notes(dsn)[0] == (
        '1 task waiting for the pool "my model", none of whose models may take them: '
        "gone is not configured, off is paused"
    )


def test_the_limit_that_is_0_is_named(dsn: str) -> None:
    with psycopg.connect(dsn, autocommit=True) as conn:
        conn.execute("update llmqueue.model_config set tpm = 0, rpd = 0 where model = 'm'")

    assert '2 tasks waiting for "m", whose tpm and rpd are 0' in notes(dsn)


@pytest.mark.parametrize(
    ("until", "said"),
    [
        ("1 hour", r"is closed until .* \(in .*\) because of 429: slow down: it reopens by itself"),
        ("-1 s", r"was closed until .* ago\) because of 429: slow down: its next call is a probe, which opens it .*"),
    ],
)
def test_a_closed_model_is_named_and_how_it_opens(dsn: str, until: str, said: str) -> None:
    with psycopg.connect(dsn, autocommit=True) as conn:
        conn.execute(
            "insert into llmqueue.model_state (model, cooldown_started_at, cooldown_until, cooldown_reason) values"
            " ('m', clock_timestamp(), clock_timestamp() + %s::interval, '429: slow down')",
            [until],
        )

    assert any(re.fullmatch(f"model m {said}; llmqueue models resume m opens it now", note) for note in notes(dsn))


def test_a_model_that_has_used_its_day_is_named(dsn: str) -> None:
    with psycopg.connect(dsn, autocommit=True) as conn:
        conn.execute("update llmqueue.model_config set rpd = 1 where model = 'm'")
        assert not any("has used" in note for note in notes(dsn))
        conn.execute(
            "insert into llmqueue.ledger_minute (model, minute, calls, tokens, output_tokens)"
            " values ('m', extract(epoch from clock_timestamp())::bigint / 60, 1, 0, 0)"
        )

    assert any(re.fullmatch(r"model m has used its rpd of 1; its day ends at .* \(in .*\)", n) for n in notes(dsn))


def test_tokens_and_closings_have_columns_only_where_they_are_used(dsn: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "220")
    plain = run_cli(dsn, "status").out
    with psycopg.connect(dsn, autocommit=True) as conn:
        conn.execute("update llmqueue.model_config set tpm = 77000 where model = 'm'")
        conn.execute(
            "insert into llmqueue.model_state (model, cooldown_started_at, cooldown_until) values ('m', now(), now() + '1 hour')"
        )
    full = run_cli(dsn, "status").out

    for title in ("tokens in 60 s", "opens"):
        assert (title in plain, title in full) == (False, True)
    assert "0 of 77,000" in full
    assert "calls today" not in full


def test_lines_keep_their_order(dsn: str) -> None:
    with psycopg.connect(dsn, autocommit=True) as conn:
        conn.execute("update llmqueue.model_config set tpm = 77000, max_concurrency = 3 where model = 'm'")

    (line,) = (row for row in run_cli(dsn, "status").rows if row[:2] == ["model", "m"])

    assert line[:8] == ["model", "m", "0", "60", "0", "0", "3", "true"]
    assert line[8:] == ["60", "77000", "0", "", "0", "", "0", "", "0", "3", "", "", "retry", "auto", "20"]


def test_quarantined_rows_are_shown(dsn: str) -> None:
    with psycopg.connect(dsn, autocommit=True) as conn:
        conn.execute("insert into llmqueue.quarantine (task_id, step, reason) values (1, 'complete', 'too long')")

    shown = json.loads(run_cli(dsn, "status", "--json").out)

    assert shown["quarantined"] == {"tasks": 1, "example": "1", "reason": "too long"}
    assert any(note.startswith("1 set aside, since the row cannot be written (1: too long).")
               for note in shown["notes"])  # fmt: skip


def test_status_of_an_idle_database_is_quiet(installed: str) -> None:
    rows = run_cli(installed, "status").rows

    assert [row[0] for row in rows] == ["database"]


def test_the_quiet_minute_after_a_failover_is_shown_while_it_lasts(dsn: str) -> None:
    with psycopg.connect(dsn, autocommit=True) as conn:
        assert not [note for note in notes(dsn) if "state may be lost" in note]

        conn.execute("update llmqueue.epoch set timeline = '000000FF'")
        conn.execute("select llmqueue_internal.check_epoch(null)")
        [shown] = [note for note in notes(dsn) if "state may be lost" in note]
        assert shown.startswith("after a failover or a recovery state may be lost: nothing is granted until ")

        conn.execute("update llmqueue.epoch set quiet_until = clock_timestamp()")
        assert not [note for note in notes(dsn) if "state may be lost" in note]
