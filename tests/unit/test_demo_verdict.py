"""The verdict turns red for each thing that can be wrong, and the summary says it."""

from __future__ import annotations

import io
import math
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from llmqueue.demo import summary
from llmqueue.demo.verdict import Row, Verdict, judge
from llmqueue.demo.windows import Period, change_periods
from llmqueue.fake_backend import LoggedCall, expected_answer

PERIODS = {"m": [Period(-math.inf, 3)]}
ROWS = [Row(f"key-{n}", f"question {n}", expected_answer(f"question {n}"), "answered") for n in range(3)]
CALLS = [LoggedCall(n + 1, 100.0 + n, 5.0 + n, "m", f"key-{n}:0", 0, 200, 100.5 + n) for n in range(3)]


def test_all_is_well_when_every_task_was_called_once_and_answered_right():
    verdict = judge(ROWS, CALLS, PERIODS)

    assert verdict.problems == []
    assert (verdict.answers.right, verdict.calls.once) == (3, 3)
    assert verdict.times.last_sent_s == pytest.approx(2.0)
    assert verdict.times.last_answered_s == pytest.approx(2.5)


@pytest.mark.parametrize(
    ("rows", "calls", "problem"),
    [
        ([*ROWS[:2], replace(ROWS[2], state="new", reply=None)], CALLS, "1 of 3 tasks were not solved"),
        ([*ROWS[:2], replace(ROWS[2], reply="wrong")], CALLS, "1 answers are not the right ones"),
        (ROWS, CALLS[:2], "1 tasks were not called exactly once"),
        (ROWS, [*CALLS, replace(CALLS[0], seq=4, arrived_monotonic=99.0)], "4 calls were made for 3 tasks"),
        (ROWS, [*CALLS[:2], replace(CALLS[2], status=429)], "the backend refused 1 calls with 429"),
        (ROWS, [*CALLS[:2], replace(CALLS[2], model="x")], "calls to models that nobody configured: x"),
    ],
)
def test_what_is_wrong_is_named(rows: list[Row], calls: list[LoggedCall], problem: str):
    assert problem in judge(rows, calls, PERIODS).problems


def test_a_call_over_the_limit_is_named_with_both_numbers():
    verdict = judge(ROWS, CALLS, {"m": [Period(-math.inf, 2)]})

    assert verdict.problems == ["m: 3 calls within 60 s, where its limit was 2"]


def test_a_call_over_a_lowered_limit_is_named():
    periods = {"m": change_periods(3, 2, begun_s=6.0, committed_s=6.1, grace_s=0.75)}

    verdict = judge(ROWS, CALLS, periods)

    assert verdict.problems == ["m: 3 calls within 60 s, where its limit was 2"]
    assert [(limit.rpm, limit.calls) for limit in verdict.limits] == [(3, 2), (2, 1)]


def test_problems_met_on_the_way_are_kept():
    assert judge(ROWS, CALLS, PERIODS, ["worker-1 ended with exit code 1"]).problems == [
        "worker-1 ended with exit code 1"
    ]


def test_a_run_without_any_call_is_a_problem_not_a_crash():
    assert judge(ROWS, [], PERIODS).problems == ["3 tasks were not called exactly once"]
    assert "3 of 3 tasks were not solved" in judge([replace(row, state="new") for row in ROWS], [], PERIODS).problems


def shown(verdict: Verdict) -> str:
    stream = io.StringIO()
    summary.show(Console(file=stream, width=80, highlight=False), verdict)
    return stream.getvalue()


def test_the_summary_fits_80_columns_and_says_that_all_is_well():
    text = shown(judge(ROWS, CALLS, PERIODS))

    assert "All is well" in text
    assert "3 of 3 tasks solved, 0 failed; 3 answers are right." in text
    assert "fullest 60 s" in text
    assert max(map(len, text.splitlines())) <= 80


def test_the_summary_names_the_problems():
    text = shown(judge(ROWS, CALLS[:2], PERIODS))

    assert "All is well" not in text
    assert "- 1 tasks were not called exactly once" in text


def after(*, has_url: bool) -> summary.Aftermath:
    return summary.Aftermath(
        ".venv/bin/llmqueue", "psql", Path("/data/a b"), "host=/data/pg user=postgres dbname=llmqueue", "key-1", has_url
    )


def test_the_commands_at_the_end_can_be_pasted():
    text = "\n".join(summary.next_lines(after(has_url=False)))

    assert "export LLMQUEUE_HOME='/data/a b'" in text
    assert ".venv/bin/llmqueue tasks show key-1" in text
    assert "psql -h /data/pg -U postgres llmqueue -c" in text
    assert "DATABASE_URL" not in text


def test_a_database_url_of_the_user_is_to_be_unset_first():
    assert "unset LLMQUEUE_DATABASE_URL" in "\n".join(summary.next_lines(after(has_url=True)))
