"""`llmqueue models set`: every limit of a model, and the messages about wrong values."""

from __future__ import annotations

import json

import psycopg
import pytest

from llmqueue.cli.limits import CONSTRAINTS, NAMELESS, OF_SPLIT, RULES, refused
from tests.support.cli import run_cli


def stored(dsn: str, *columns: str) -> tuple[object, ...]:
    with psycopg.connect(dsn) as conn:
        found = conn.execute(f"select {', '.join(columns)} from llmqueue.model_config")
        (row,) = found.fetchall()
    return tuple(row)


@pytest.fixture
def dsn(installed: str) -> str:
    assert run_cli(installed, "models", "set", "m", "--rpm", "600").code == 0
    return installed


@pytest.mark.parametrize(
    ("options", "columns", "values", "said"),
    [
        (["--tpm", "60000"], ["tpm", "token_mode"], (60000, "sum"), "60,000 tokens per minute (sum)"),
        (["--tpm", "none"], ["tpm"], (None,), None),
        (["--tpm", "9000000000000000000"], ["tpm"], (9 * 10**18,), "9,000,000,000,000,000,000 tokens per minute (sum)"),
        (["--token-mode", "actual", "--tpm", "1"], ["token_mode"], ("actual",), "1 tokens per minute (actual)"),
        (["--token-mode", "split", "--output-tpm", "8000"], ["output_tpm"], (8000,), "8,000 output tokens per minute"),
        (["--max-output", "500"], ["max_output"], (500,), "500 output tokens per call unless its params say so"),
        (["--rpd", "1000"], ["rpd", "quota_timezone"], (1000, "UTC"), "1,000 per day, a day begins at midnight in UTC"),
        (["--tpd", "5000000000"], ["tpd"], (5 * 10**9,), "5,000,000,000 tokens per day"),
        (["--quota-timezone", "America/Los_Angeles"], ["quota_timezone"], ("America/Los_Angeles",), None),
        (["--burst-window", "10=1/6", "--burst-window", "1=0.0167"], ["burst_windows"],
         ({"10": 1 / 6, "1": 0.0167},), "at most 100 in 10 s, at most 10 in 1 s"),
        (["--burst-window", "0.5=1"], ["burst_windows"], ({"0.5": 1},), "at most 600 in 0.5 s"),
        (["--burst-window", "none"], ["burst_windows"], (None,), None),
        (["--weight", "0"], ["weight"], (0,), "not in the default pool"),
        (["--weight", "2.5"], ["weight"], (2.5,), "weight 2.5"),
        (["--hot-share", "0.25"], ["hot_share"], (0.25,), "hot share 0.25"),
    ],
)  # fmt: skip
def test_a_limit_is_set_and_said(
    dsn: str, options: list[str], columns: list[str], values: tuple[object, ...], said: str | None
) -> None:
    done = run_cli(dsn, "models", "set", "m", *options)

    assert (done.code, done.err) == (0, "")
    assert stored(dsn, *columns) == values
    assert said is None or f", {said}" in done.out


def test_what_is_not_given_stays_and_none_clears(dsn: str) -> None:
    run_cli(dsn, "models", "set", "m", "--tpm", "5000", "--rpd", "7", "--weight", "2", "--burst-window", "10=0.5")

    run_cli(dsn, "models", "set", "m", "--tpm", "6000", "--burst-window", "1=0.1")
    assert stored(dsn, "rpm", "tpm", "rpd", "weight", "burst_windows") == (600, 6000, 7, 2, {"1": 0.1})

    run_cli(dsn, "models", "set", "m", "--tpm", "none", "--rpd", "none", "--burst-window", "none")
    assert stored(dsn, "rpm", "tpm", "rpd", "weight", "burst_windows") == (600, None, None, 2, None)


def test_a_new_model_takes_all_its_limits_at_once(installed: str) -> None:
    done = run_cli(installed, "models", "set", "new", "--rpm", "60", "--tpm", "5000", "--token-mode", "max")

    assert done.out.startswith("new: 60 calls per minute, 5,000 tokens per minute (max), no limit on calls in flight")
    assert stored(installed, "model", "rpm", "tpm", "token_mode", "enabled") == ("new", 60, 5000, "max", True)


def test_how_tasks_are_sent_is_set_and_shown_where_it_is_not_the_usual(dsn: str) -> None:
    assert stored(dsn, "dispatch", "max_batch") == ("auto", 20)
    assert "dispatch" not in run_cli(dsn, "models", "list").out

    done = run_cli(dsn, "models", "set", "m", "--dispatch", "batch", "--max-batch", "50")
    assert "up to 50 tasks in a call" in done.out
    assert stored(dsn, "dispatch", "max_batch") == ("batch", 50)
    [row] = json.loads(run_cli(dsn, "models", "list", "--json").out)
    assert (row["dispatch"], row["max_batch"]) == ("batch", 50)

    assert "a call per task" in run_cli(dsn, "models", "set", "m", "--dispatch", "single").out


COUNT = "must be a whole number of at least 0, or none"
ZONE = f"llmqueue: --quota-timezone must be {RULES['quota_timezone']}"
WINDOW = f"llmqueue: --burst-window must be {RULES['burst_windows']}"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--tpm", "-1"], f"llmqueue: --tpm {COUNT} (got '-1')"),
        (["--tpm", "1.5"], f"llmqueue: --tpm {COUNT} (got '1.5')"),
        (["--tpm", "9223372036854775808"], f"llmqueue: --tpm {COUNT} (got '9223372036854775808')"),
        (["--tpm", "9" * 5000], f"llmqueue: --tpm {COUNT} (got '999"),
        (["--output-tpm", "x"], f"llmqueue: --output-tpm {COUNT} (got 'x')"),
        (["--rpd", "99999999999"], f"llmqueue: --rpd {COUNT} (got '99999999999')"),
        (["--tpd", ""], f"llmqueue: --tpd {COUNT} (got '')"),
        (["--max-output", "0"], "llmqueue: --max-output must be a whole number of at least 1, or none (got '0')"),
        (["--weight", "-1"], f"llmqueue: --weight must be {RULES['weight']} (got -1.0)"),
        (["--weight", "nan"], "(got nan)"),
        (["--weight", "inf"], "(got inf)"),
        (["--hot-share", "0.95"], "llmqueue: --hot-share must be a number from 0 to 0.9 (got 0.95)"),
        (["--timeout", "1e-9"], "llmqueue: --timeout must be a number of seconds above 0 and at most a year"),
        (["--token-mode", "both"], "--token-mode"),
        (["--quota-timezone", "Mars/Olympus"], f"{ZONE} (got 'Mars/Olympus')"),
        (["--quota-timezone", ""], f"{ZONE} (got '')"),
        (["--burst-window", "10"], f"{WINDOW} (got '10')"),
        (["--burst-window", "0=1"], f"{WINDOW} (got '0=1')"),
        (["--burst-window", "0.000=1"], f"{WINDOW} (got '0.000=1')"),
        (["--burst-window", "100=1"], f"{WINDOW} (got '100=1')"),
        (["--burst-window", "10=0"], f"{WINDOW} (got '10=0')"),
        (["--burst-window", "10=1.1"], f"{WINDOW} (got '10=1.1')"),
        (["--burst-window", "10=1/0"], f"{WINDOW} (got '10=1/0')"),
        (["--burst-window", "10=1e9999999"], f"{WINDOW} (got '10=1e9999999')"),
        (["--burst-window", "none", "--burst-window", "1=1"], f"{WINDOW} (got 'none')"),
        (["--burst-window", "10=1", "--burst-window", "10=0.5"],
         "llmqueue: --burst-window 10=0.5: 10 s is given twice"),
        (["--dispatch", "both"], "--dispatch"),
        (["--max-batch", "0"], "--max-batch"),
        (["--max-batch", "1001"], "--max-batch"),
        (["--output-tpm", "5"], "llmqueue: an --output-tpm is for --token-mode split, which counts input and output"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused_with_option_value_and_remedy(dsn: str, options: list[str], message: str) -> None:
    refused = run_cli(dsn, "models", "set", "m", *options)

    assert (refused.code, refused.out) == (2, "")
    assert message in refused.err
    assert "Traceback" not in refused.err


def test_output_tpm_keeps_a_model_from_leaving_split(dsn: str) -> None:
    run_cli(dsn, "models", "set", "m", "--token-mode", "split", "--output-tpm", "100")

    assert "or --output-tpm none" in run_cli(dsn, "models", "set", "m", "--token-mode", "sum").err
    assert run_cli(dsn, "models", "set", "m", "--token-mode", "sum", "--output-tpm", "none").code == 0


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("rpm", "-1"), ("max_concurrency", "-1"), ("timeout", "'0 s'"), ("tpm", "-1"), ("output_tpm", "-1"),
        ("token_mode", "'both'"), ("max_output", "0"), ("rpd", "-1"), ("tpd", "-1"), ("quota_timezone", "'Mars'"),
        ("burst_windows", """'{"0": 1}'"""), ("burst_windows", """'{"10": 2}'"""), ("burst_windows", "'[]'"),
        ("weight", "-1"), ("weight", "'nan'"), ("hot_share", "1"), ("on_crash", "'drop'"), ("model", "''"),
        ("dispatch", "'both'"), ("max_batch", "0"), ("max_batch", "1001"),
    ],
)  # fmt: skip
def test_every_check_of_the_table_is_answered_by_its_option(
    conn: psycopg.Connection[tuple[object, ...]], column: str, value: str
) -> None:
    conn.execute("insert into llmqueue.model_config (model, rpm, token_mode) values ('m', 1, 'split')")

    with pytest.raises(psycopg.Error) as raised:
        conn.execute(f"update llmqueue.model_config set {column} = {value}")

    option = {"model": "NAME", "burst_windows": "--burst-window"}.get(column, f"--{column.replace('_', '-')}")
    assert str(refused(raised.value, {column: value})).startswith(f"{option} must ")


def test_every_check_of_the_table_is_known(conn: psycopg.Connection[tuple[object, ...]]) -> None:
    found = conn.execute(
        "select conname from pg_constraint where conrelid = 'llmqueue.model_config'::regclass and contype = 'c'"
    ).fetchall()

    assert {name for (name,) in found} == {*CONSTRAINTS, NAMELESS, OF_SPLIT}


def test_what_is_hardly_meant_is_warned_of(dsn: str) -> None:
    never_fits = run_cli(dsn, "models", "set", "m", "--tpm", "1000", "--max-output", "4096")
    nothing = run_cli(dsn, "models", "set", "m", "--tpm", "none", "--max-output", "none", "--token-mode", "split")

    assert never_fits.code == 0
    assert never_fits.err == (
        "llmqueue: warning: max_output 4,096 is more than tpm 1,000: a call whose params name no maximum never fits, "
        "and its task ends as a dead letter\n"
    )
    assert nothing.err == "llmqueue: warning: token mode split without --tpm and --output-tpm limits nothing\n"
