"""`llmqueue audit` on logs written by hand, and on a log written by the limiter."""

from __future__ import annotations

import json
import random
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg import sql

from llmqueue.audit import log
from tests.support.cli import Result, run_cli
from tests.support.sql import Queue

Connection = psycopg.Connection[Any]

# Not on a whole second: what is stored in microseconds is judged in microseconds.
START = datetime(2026, 3, 1, 12, 0, 0, 123457, tzinfo=UTC)


def attempt(conn: Connection, at_s: float, rpm: object = 60, **columns: object) -> None:
    """Logs an attempt granted at START + at_s, under the next fence; sent at once unless told otherwise."""
    granted_at = START + timedelta(seconds=at_s)
    given: dict[str, object] = {
        "task_id": 1,
        "model": "m",
        "worker": "00000000-0000-0000-0000-000000000000",
        "attempt_no": 1,
        "granted_at": granted_at,
        "sent_at": granted_at,
        "ended_at": granted_at + timedelta(seconds=5),
        "outcome": "completed",
        "cell": 0,
        "rpm": rpm,
        **columns,
    }
    insert = sql.SQL("insert into llmqueue.attempt (fence, {}) values (nextval('llmqueue.fence_seq'), {})").format(
        sql.SQL(", ").join(map(sql.Identifier, given)), sql.SQL(", ").join(map(sql.Placeholder, given))
    )
    conn.execute(insert, given)


def model_of(result: Result, name: str = "m") -> dict[str, Any]:
    (found,) = (model for model in json.loads(result.out)["models"] if model["model"] == name)
    assert isinstance(found, dict)
    return found


def limit_of(result: Result, what: str = "calls", name: str = "m") -> dict[str, Any]:
    (found,) = (limit for limit in model_of(result, name)["limits"] if limit["what"] == what)
    assert isinstance(found, dict)
    return found


def test_an_empty_log_has_no_violation(installed: str) -> None:
    plain, as_json = run_cli(installed, "audit"), run_cli(installed, "audit", "--json")

    assert (plain.code, plain.out) == (0, "no attempts in the log\n")
    assert (as_json.code, json.loads(as_json.out)["is_violated"], json.loads(as_json.out)["models"]) == (0, False, [])


def test_a_log_within_its_limits_ends_well(conn: Connection, installed: str) -> None:
    for n in range(7):
        attempt(conn, 30 * n, rpm=2)

    done = run_cli(installed, "audit")

    assert (done.code, done.err) == (0, "")
    assert done.rows[0][:2] == ["log", START.isoformat()]
    assert done.rows[1][:4] == ["model", "m", "7", "7"]
    assert done.rows[2][:5] == ["limit", "m", "calls", "2", "2"]
    assert done.rows[2][7:9] == ["100.0", "0"]
    assert len(done.rows) == 3


def test_a_window_over_its_limit_is_named_and_fails(conn: Connection, installed: str) -> None:
    for at_s in (0, 30, 59.999999, 200):
        attempt(conn, at_s, rpm=2)

    done = run_cli(installed, "audit")

    until = START + timedelta(seconds=59.999999)
    named = ["violation", "m", "calls", "3", "2", (until - timedelta(seconds=60)).isoformat(), until.isoformat()]
    assert done.code == 1
    assert done.rows[-1] == named


def test_unknown_calls_are_taken_at_their_worst_and_unsent_ones_not_at_all(conn: Connection, installed: str) -> None:
    running = {"sent_at": None, "ended_at": None, "outcome": None}
    attempt(conn, 0, rpm=2, **running)
    attempt(conn, 1, rpm=2, sent_at=None, outcome="released", error_class="late_grant")
    attempt(conn, 1, rpm=2, sent_at=None, outcome="retried", error_class="adapter_raised")
    attempt(conn, 60.2, rpm=2)
    attempt(conn, 60.3, rpm=2)

    done = run_cli(installed, "audit", "--json")

    assert done.code == 0
    assert limit_of(done)["worst"]["used"] == 2
    model = model_of(done)
    counts = {name: model[name] for name in ("attempts", "sent", "unknown", "unsent", "forfeited")}
    assert counts == {"attempts": 5, "sent": 2, "unknown": 1, "unsent": 2, "forfeited": 1}

    attempt(conn, 60.249, rpm=2, sent_at=None, outcome="lost")
    assert run_cli(installed, "audit").code == 1


def test_the_guard_is_the_largest_that_may_have_been_in_force(conn: Connection, installed: str) -> None:
    attempt(conn, 0, sent_at=START + timedelta(seconds=0.9))
    late = run_cli(installed, "audit")
    conn.execute("update llmqueue.limiter set guard_before_s = 2")

    assert (late.code, late.rows[-1]) == (1, ["late", "m", "1", "0.9"])
    assert run_cli(installed, "audit").code == 0


def test_a_lowering_counts_from_its_first_grant_on(conn: Connection, installed: str) -> None:
    for n in range(10):
        attempt(conn, n, rpm=10)
    attempt(conn, 68.5, rpm=2)
    fits = run_cli(installed, "audit")
    attempt(conn, 68.6, rpm=1)

    assert fits.code == 0
    assert run_cli(installed, "audit").code == 1


def test_tokens_are_judged_by_what_was_charged(conn: Connection, installed: str) -> None:
    attempt(conn, 0, tpm=100, tokens=40, top_up_tokens=10, tokens_final=90)
    attempt(conn, 1, tpm=100, tokens=50, tokens_final=20)
    within = run_cli(installed, "audit", "--json")
    attempt(conn, 2, tpm=100, tokens=1)
    over = run_cli(installed, "audit", "--json")

    tokens = limit_of(within, "tokens")
    assert (within.code, tokens["worst"]["used"], tokens["overshoot"]) == (0, 100, 40)
    assert (tokens["final"]["used"], tokens["final"]["limit"], tokens["final"]["overshoot"]) == (110, 100, 40)
    assert (over.code, limit_of(over, "tokens")["worst"]["used"], limit_of(over)["over"]) == (1, 101, 0)


def test_output_has_its_own_limit(conn: Connection, installed: str) -> None:
    split = {"token_mode": "split", "tpm": 1000, "tokens": 5, "output_tpm": 10, "output_tokens_charged": 6}
    attempt(conn, 0, **split, output_tokens_final=9)
    attempt(conn, 1, **split)

    done = run_cli(installed, "audit", "--json")

    output = limit_of(done, "output_tokens")
    assert (done.code, output["worst"]["used"], output["final"]["used"], output["overshoot"]) == (1, 12, 15, 3)
    assert limit_of(done, "tokens")["over"] == 0


def test_refusals_and_the_time_to_the_sending_are_counted(conn: Connection, installed: str) -> None:
    attempt(conn, 0, outcome="refused", error_class="rate_limited", sent_at=START + timedelta(seconds=0.125))
    attempt(conn, 1, outcome="refused", error_class="overloaded")

    model = model_of(run_cli(installed, "audit", "--json"))

    assert (model["refused"], model["rate_limited"], model["slowest_s"]) == (2, 1, 0.125)


def test_models_can_be_chosen(conn: Connection, installed: str) -> None:
    for name in ("a", "b", "c"):
        attempt(conn, 0, rpm=0 if name == "b" else 5, model=name)

    chosen = run_cli(installed, "audit", "--model", "a", "--model", "c", "--json")

    assert (chosen.code, [model["model"] for model in json.loads(chosen.out)["models"]]) == (0, ["a", "c"])
    assert run_cli(installed, "audit").code == 1


def test_a_model_that_is_not_in_the_log_is_wrong_usage(conn: Connection, installed: str) -> None:
    attempt(conn, 0, model="gpt-4")

    refused = run_cli(installed, "audit", "--model", "gtp-4")

    message = 'llmqueue: there is no attempt of model "gtp-4" in that part of the log. It has: gpt-4\n'
    assert (refused.code, refused.err) == (2, message)


def test_since_begins_later_but_knows_what_its_windows_hold(
    conn: Connection, installed: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(log, "PAGE", 3)
    for n in range(30):
        attempt(conn, n * 30, rpm=2 if n else 0)

    whole = run_cli(installed, "audit", "--json")
    later = run_cli(installed, "audit", "--json", "--since", (START + timedelta(seconds=301)).isoformat())
    nothing = run_cli(installed, "audit", "--since", "1s")

    assert (whole.code, later.code) == (1, 0)
    assert json.loads(whole.out)["reaches_to"] == json.loads(later.out)["reaches_to"] == START.isoformat()
    assert (model_of(whole)["attempts"], model_of(later)["attempts"]) == (30, 19)
    assert (limit_of(later)["worst"]["used"], limit_of(later)["use_pct"]) == (2, 100)
    assert (nothing.code, nothing.rows[0][4], len(nothing.rows)) == (0, "0", 1)


@pytest.mark.parametrize("text", ["700d", "1900-01-01T00:00+00:00", "2026-03-01T12:00Z"])
def test_since_may_be_before_the_log(conn: Connection, installed: str, text: str) -> None:
    attempt(conn, 0)

    assert run_cli(installed, "audit", "--since", text).rows[1][:3] == ["model", "m", "1"]


@pytest.mark.parametrize("text", ["soon", "1", "2026-13-01", "99999999999d"])
def test_since_is_a_duration_or_a_time(installed: str, text: str) -> None:
    refused = run_cli(installed, "audit", "--since", text)

    assert refused.code == 2
    assert refused.err.startswith("llmqueue: --since must be a duration such as 90m, 12h or 30d, or a time such as")


def test_a_time_without_a_zone_is_local(conn: Connection, installed: str) -> None:
    attempt(conn, 0)
    here = START.astimezone().replace(tzinfo=None)

    assert run_cli(installed, "audit", "--since", here.isoformat()).rows[0][4] == "1"
    assert run_cli(installed, "audit", "--since", (here + timedelta(seconds=1)).isoformat()).rows[0][4] == "0"


def test_pages_fit_together(conn: Connection, installed: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for n in range(23):
        attempt(conn, n, rpm=20, model="a" if n % 2 else "b")
        conn.execute("select nextval('llmqueue.fence_seq')")  # claims that were rolled back leave gaps
    at_once = run_cli(installed, "audit", "--json")
    monkeypatch.setattr(log, "PAGE", 1)

    in_pages = run_cli(installed, "audit", "--json")

    assert json.loads(in_pages.out)["models"] == json.loads(at_once.out)["models"]
    assert json.loads(in_pages.out)["attempts"] == 23


def test_what_the_limiter_granted_is_never_a_violation(conn: Connection, installed: str) -> None:
    queue = Queue(conn)
    rng = random.Random(3)  # a draw that fills a window of calls to the last
    queue.model("a", 30, tpm=5_000, token_mode="sum", max_output=500)
    queue.model("b", 120)
    queue.add(3000)
    granted = 0
    for _ in range(500):
        queue.advance(rng.choice([0.01, 0.25, 0.3, 0.9, 1.0]))
        if rng.random() < 0.05:
            queue.model("b", rng.choice([30, 60, 120]))
        # by name: for all models the database draws the order itself, and how full the windows get depends on it
        for grant in queue.claim(rng.randint(1, 20), rng.sample(["a", "b"], 2)).grants:
            granted += 1
            match rng.randrange(4):
                case 0:
                    queue.release(grant)
                case 1:
                    queue.retry(grant, is_unsent=True, sent_after_s=None)
                case 2:
                    queue.complete(grant)

    done = run_cli(installed, "audit", "--json")

    assert granted > 200
    assert (done.code, json.loads(done.out)["attempts"]) == (0, granted), done.out
    # near enough to its limits to be worth a judgement
    calls, tokens = limit_of(done, "calls", "b")["worst"], limit_of(done, "tokens", "a")["worst"]
    assert calls["used"] == calls["limit"]
    assert tokens["used"] > tokens["limit"] / 2


def test_the_log_and_the_limiter_are_all_that_is_read(conn: Connection, server: Any, installed: str) -> None:
    attempt(conn, 0)
    conn.execute("create role auditor login")
    conn.execute("grant usage on schema llmqueue to auditor")
    try:
        refused = run_cli(f"{installed} user=auditor", "audit")
        conn.execute("grant select on llmqueue.attempt, llmqueue.limiter to auditor")

        allowed = run_cli(f"{installed} user=auditor", "audit")
    finally:
        conn.execute("drop owned by auditor")
        conn.execute("drop role auditor")

    assert (refused.code, allowed.code) == (1, 0)
    assert refused.err == "llmqueue: the database does not allow it: permission denied for table limiter\n"
    assert allowed.rows[1][:3] == ["model", "m", "1"]


# --- the plot -----------------------------------------------------------------------------------------------------


@pytest.fixture
def drawable(conn: Connection, installed: str) -> str:
    pytest.importorskip("matplotlib")
    for n in range(60):
        attempt(conn, n * 20, rpm=6 if n < 30 else 3, model="$x", tpm=500, tokens=100)
        attempt(conn, n * 20, rpm=1, model="y", output_tpm=50, tpm=500, tokens=3, output_tokens_charged=5)
    return installed


def test_the_plot_shows_models_limits_and_their_changes(drawable: str, tmp_path: Path) -> None:
    file = tmp_path / "use.svg"

    done = run_cli(drawable, "audit", "--plot", str(file))

    text = file.read_text()
    assert (done.code, done.err) == (1, f"drawn: {file}\n")
    for shown in ("$x", "y: over its limit", "6 → 3", "limit of tokens", "output tokens charged", "calls in 60 s"):
        assert shown in text, shown
    again = tmp_path / "again.svg"
    run_cli(drawable, "audit", "--since", START.isoformat(), "--plot", str(again))
    assert again.exists()


def test_the_plot_can_be_a_picture(drawable: str, tmp_path: Path) -> None:
    file = tmp_path / "use.PNG"

    run_cli(drawable, "audit", "--plot", str(file), "--json")

    assert file.read_bytes().startswith(b"\x89PNG\r\n")


def test_a_plot_of_nothing_is_not_written(drawable: str, tmp_path: Path) -> None:
    file = tmp_path / "use.svg"

    done = run_cli(drawable, "audit", "--since", "1s", "--plot", str(file))

    assert (done.code, done.err, file.exists()) == (0, f"nothing to draw: {file} is not written\n", False)


@pytest.mark.parametrize(
    ("file", "message"),
    [
        ("use.pdf", "--plot must be a file that ends with .svg or .png (got 'use.pdf')"),
        ("use", "--plot must be a file that ends with .svg or .png (got 'use')"),
        ("nowhere/use.svg", "cannot write nowhere/use.svg: there is no folder nowhere"),
    ],
)
def test_a_plot_that_cannot_be_is_wrong_usage(installed: str, file: str, message: str) -> None:
    refused = run_cli(installed, "audit", "--plot", file)

    assert (refused.code, refused.err) == (2, f"llmqueue: {message}\n")


def test_without_matplotlib_the_remedy_is_named(installed: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)

    refused = run_cli(installed, "audit", "--plot", "use.svg")

    message = "llmqueue: --plot needs matplotlib. Install it: pip install 'llmqueue[plot]'\n"
    assert (refused.code, refused.err) == (2, message)


def test_an_overcharge_of_a_short_attempt_fails(conn: Connection, installed: str) -> None:
    ended_at = START + timedelta(milliseconds=60)
    attempt(conn, 0, tpm=20_000, tokens=50_000, tokens_final=40, ended_at=ended_at)

    done = run_cli(installed, "audit", "--json")

    assert (done.code, limit_of(done, "tokens")["worst"]["used"]) == (1, 50_000)


def test_a_call_sent_before_its_grant_fails(conn: Connection, installed: str) -> None:
    attempt(conn, 0, sent_at=START - timedelta(seconds=1))

    done = run_cli(installed, "audit")

    assert (done.code, done.rows[-1]) == (1, ["impossible", "m", "1"])


def test_windows_that_a_step_of_the_clock_hides_are_named(
    conn: Connection, installed: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for at_s in (100, 0, 1):
        attempt(conn, at_s)

    done, as_json = run_cli(installed, "audit"), run_cli(installed, "audit", "--json")
    monkeypatch.setenv("FORCE_COLOR", "1")
    page = run_cli(installed, "audit").out

    assert (done.code, done.rows[-1]) == (0, ["not_judged", "m", "2", "1"])
    assert (json.loads(as_json.out)["not_judged"], model_of(as_json)["not_judged"]) == (2, 2)
    assert "m: 2 windows not judged: the clock stepped back" in page
    assert "no window was over its limit; 2 windows not judged" in page


def test_since_in_the_future_is_wrong_usage(installed: str) -> None:
    done = run_cli(installed, "audit", "--since", "2999-01-01T00:00")

    assert (done.code, done.err[:46]) == (2, "llmqueue: --since must not be in the future (g")
