"""The pure parts of `llmqueue simulate`: what is computed from a run, and what a call costs its provider."""

from __future__ import annotations

from random import Random

import pytest

from llmqueue.fake_backend.latency import LatencyFit
from llmqueue.forecast.fleet import Log
from llmqueue.forecast.providers import Endpoint, counted_tokens
from llmqueue.forecast.report import left_s, oldest_cold_s, percentile, use_pct, worst_sum
from llmqueue.forecast.scenario import Lane, Model, PoolMember, Scenario, affordable
from llmqueue.types import Answer, Throttled, TransientError

ALWAYS_TEN_S = LatencyFit(*[10.0] * 7)


def endpoint(rpm: int, **fields: object) -> Endpoint:
    scenario = Scenario(models=(Model("m", rpm),), **fields)  # type: ignore[arg-type]
    return Endpoint(scenario.models[0], ALWAYS_TEN_S, scenario, Random(1))


def test_a_call_is_answered_after_its_latency_with_its_usage() -> None:
    reply, after_s = endpoint(1, input_tokens=3, output_tokens=5).call(0.0, timeout_s=60.0)

    assert isinstance(reply, Answer)
    assert (reply.usage.input_tokens, reply.usage.output_tokens, after_s) == (3, 5, pytest.approx(10.0))  # type: ignore[comparison-overlap]


def test_a_call_over_the_limit_is_refused_soon_with_whole_seconds() -> None:
    judge = endpoint(1)
    judge.call(0.0, timeout_s=60.0)

    reply, after_s = judge.call(0.5, timeout_s=60.0)

    assert isinstance(reply, Throttled)
    assert (reply.kind, reply.retry_after_s) == ("quota", 60.0)
    assert after_s < 1
    assert (judge.calls.refused, judge.calls.answered, len(judge.calls.arrivals)) == (1, 1, 2)


def test_a_call_that_takes_longer_than_the_timeout_breaks_down() -> None:
    reply, after_s = endpoint(1).call(0.0, timeout_s=4.0)

    assert isinstance(reply, TransientError)
    assert after_s == 4.0


@pytest.mark.parametrize(
    ("columns", "tokens"),
    [
        ({}, 0),
        ({"tpm": 100_000}, 1100),
        ({"tpm": 100_000, "token_mode": "sum", "max_output": 30}, 130),
        ({"tpm": 100_000, "token_mode": "max", "max_output": 30}, 100),
        ({"tpm": 100_000, "token_mode": "max", "max_output": 300}, 300),
        ({"tpm": 100_000, "token_mode": "input"}, 100),
        ({"tpm": 100_000, "token_mode": "split"}, 100),
        ({"tpm": 100_000, "token_mode": "actual"}, 107),
        ({"tpm": 400}, 200),
    ],
)
def test_tokens_are_counted_as_the_mode_says(columns: dict[str, object], tokens: int) -> None:
    expected = tokens + 24 if columns == {"tpm": 100_000} else tokens  # 1,024 where nothing is said

    assert counted_tokens(Model("m", 60, columns), 100, 7) == expected


def test_use_is_the_average_of_whole_windows() -> None:
    assert use_pct([float(s) for s in range(181)], [1] * 181, 60) == 100.0
    assert use_pct([float(s) for s in range(0, 181, 2)], [1] * 91, 60) == 50.0
    assert use_pct([float(s) for s in range(0, 181, 2)], [3] * 91, 180) == 50.0
    assert use_pct([0.0, 60.0], [1, 1], 60) is None
    assert use_pct([], [], 60) is None


def test_worst_sum_is_that_of_a_half_open_window() -> None:
    assert worst_sum([0.0, 30.0, 60.0, 61.0], [5, 1, 2, 3]) == 6
    assert worst_sum([], []) == 0


def test_percentiles_are_values_that_occurred() -> None:
    assert percentile([], 0.5) is None
    assert percentile([1.0], 0.99) == 1.0
    assert percentile([float(n) for n in range(1, 101)], 0.99) == 99.0
    assert percentile([1.0, 2.0], 0.5) == 1.0


def test_the_rest_takes_as_long_as_the_slowest_lane() -> None:
    scenario = Scenario(models=(), backlog=(Lane("a", 100), Lane("", 60, 5), Lane("", 60)))
    ended = [(float(s), s % 3) for s in range(1, 241)]  # a third of a task a second from each

    # lane a: 20 left at 1/3 a second; the default pool's two: none left
    assert left_s(scenario, ended, 240.0) == pytest.approx(60.0, rel=0.05)


def test_a_lane_that_does_not_move_is_never_done() -> None:
    scenario = Scenario(models=(), backlog=(Lane("a", 100), Lane("b", 1)))

    assert left_s(scenario, [(float(s), 0) for s in range(100)], 120.0) is None


def test_the_oldest_task_is_the_first_of_the_lane_that_waited_longest() -> None:
    log = Log(first_keys=[1, 11], last_key=20)
    assert oldest_cold_s(log) is None

    log.first_sent_at = {1: 0.5}
    assert oldest_cold_s(log) is None

    log.first_sent_at = {1: 0.5, 11: 7.0}
    assert oldest_cold_s(log) == 7.0


def test_only_what_can_be_called_is_put_into_the_table() -> None:
    models = (Model("a", 60), Model("b", 600, {"weight": 0}), Model("c", 600, {"enabled": False}))
    scenario = Scenario(models=models, pools=(PoolMember("both", "a", 1), PoolMember("both", "b", 1)), for_s=600.0)

    assert affordable(scenario, Lane("", 10)) == 10
    assert affordable(scenario, Lane("", 10**6)) == 60 * 12 + 1
    assert affordable(scenario, Lane("both", 10**6)) == 660 * 12 + 1
    assert affordable(scenario, Lane("c", 10**6)) == 1
