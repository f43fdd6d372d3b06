"""`llmqueue simulate`: wrong usage is told in a line, before anything is started."""

from __future__ import annotations

import pytest

from tests.support.cli import run_cli

NOWHERE = "host=nowhere.invalid dbname=none"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "there is no model: name one with --model NAME=RPM"),
        (["--model", "a"], "--model a: must be NAME=NUMBER, such as kimi-k2.5=600"),
        (["--model", "a=-1"], "must be NAME=NUMBER"),
        (["--model", "a=1.5"], "must be NAME=NUMBER"),
        (["--model", "a=60"], "there is nothing to do: no backlog (--tasks) and no hot tasks (--hot)"),
        (["--model", "a=60", "--tasks", "many"], "--tasks many: must be a number of tasks, or NAME=NUMBER"),
        (["--model", "a=60", "--tasks", "0"], "must be a number of tasks"),
        (["--model", "a=60", "--tasks", "b=5"], "--tasks b=5: there is no model or pool b"),
        (["--model", "a=60", "--tpm", "b=5"], "--tpm b: there is no such model; name it with --model b=RPM"),
        (["--model", "a=60", "--max-concurrency", "a=x"], "--max-concurrency a=x: must be NAME=NUMBER"),
        (["--model", "a=60", "--tasks", "5", "--provider", "leaky"], "provider must be one of sliding, bucket"),
        (["--model", "a=60", "--tasks", "5", "--for", "10"], "--for 10: must be a duration such as 90s, 10m or 2h"),
        (["--model", "a=60", "--tasks", "5", "--for", "0m"], "--for 0m: must be a duration"),
        (["--model", "a=60", "--tasks", "5", "--workers", "0"], "--workers"),
    ],
)
def test_wrong_usage_exits_2_and_says_what_is_wrong(options: list[str], message: str) -> None:
    result = run_cli(NOWHERE, "simulate", *options)

    assert result.code == 2
    assert message in result.err
    assert result.out == ""
