"""The simulated backend's own limit is strict in every sliding window."""

from random import Random

import pytest

from llmqueue.fake_backend import worst_window
from llmqueue.fake_backend.limits import RateLimits


def test_a_call_over_the_limit_is_told_in_whole_seconds_when_to_return():
    limits = RateLimits({"m": 2})

    assert limits.admit("m", 100.0) is None
    assert limits.admit("m", 101.0) is None
    assert limits.admit("m", 130.5) == 30  # 29.5 rounded up
    assert limits.admit("m", 160.0) is None


def test_a_refused_call_does_not_count():
    limits = RateLimits({"m": 1})
    limits.admit("m", 0.0)

    for arrived in range(1, 60):
        assert limits.admit("m", float(arrived)) is not None

    assert limits.admit("m", 60.0) is None


def test_a_limit_set_live_holds_for_calls_that_came_before_it():
    limits = RateLimits({"m": None})
    for arrived in range(5):
        limits.admit("m", float(arrived))

    limits.rpm["m"] = 5

    assert limits.admit("m", 10.0) == 50


def test_a_limit_of_zero_refuses_every_call():
    assert RateLimits({"m": 0}).admit("m", 0.0) == 60


def test_a_withdrawn_call_gives_its_place_back():
    limits = RateLimits({"m": 1})
    limits.admit("m", 0.0)

    limits.withdraw("m", 0.0)

    assert limits.admit("m", 1.0) is None


def test_models_do_not_share_a_limit():
    limits = RateLimits({"a": 1, "b": 1})

    assert limits.admit("a", 0.0) is None
    assert limits.admit("b", 0.0) is None


@pytest.mark.parametrize("seed", range(5))
def test_no_window_ever_overflows_even_when_arrivals_are_judged_out_of_order(seed: int):
    rng = Random(seed)
    limits = RateLimits({"m": 40}, window_s=1.0)
    arrivals = [step / 100 + rng.uniform(-0.05, 0.05) for step in range(10_000)]

    admitted = [arrived for arrived in arrivals if limits.admit("m", arrived) is None]

    assert worst_window(admitted, window_s=1.0) == 40
    assert len(admitted) >= 0.9 * 40 * 100
