"""The least time that quotas allow."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmqueue.demo.bound import even_time_s, least_time_s, most_calls
from llmqueue.demo.windows import Period

ALWAYS = -math.inf


def steady(rpm: int) -> list[Period]:
    return [Period(ALWAYS, rpm)]


@pytest.mark.parametrize(("at_s", "calls"), [(0.0, 10), (59.9, 10), (60.0, 20), (119.0, 20), (120.0, 30)])
def test_a_steady_limit_is_spent_at_the_start_of_each_window(at_s: float, calls: int):
    assert most_calls(steady(10), at_s) == calls


@pytest.mark.parametrize(("at_s", "calls"), [(0.0, 10), (30.0, 25), (60.0, 35), (90.0, 50)])
def test_a_raise_gives_its_difference_at_once(at_s: float, calls: int):
    assert most_calls([Period(ALWAYS, 10), Period(30.0, 25)], at_s) == calls


@pytest.mark.parametrize(("at_s", "calls"), [(0.0, 10), (59.0, 10), (60.0, 14), (90.0, 14), (120.0, 18)])
def test_after_a_lowering_what_was_sent_before_still_counts(at_s: float, calls: int):
    assert most_calls([Period(ALWAYS, 10), Period(30.0, 4)], at_s) == calls


@given(
    st.lists(st.tuples(st.integers(1, 100), st.integers(0, 6)), max_size=3),
    st.integers(0, 6),
    st.integers(0, 200),
)
def test_no_schedule_second_by_second_sends_more(changes: list[tuple[int, int]], first: int, until: int):
    limits = dict(sorted(changes))
    periods = [Period(ALWAYS, first), *(Period(float(at), rpm) for at, rpm in limits.items())]

    sent: list[int] = []
    rpm = first
    for second in range(until + 1):
        rpm = limits.get(second, rpm)
        sent.append(max(0, rpm - sum(sent[max(0, second - 59) : second])))

    assert most_calls(periods, float(until)) == sum(sent)


def test_the_least_time_is_when_all_models_together_have_sent_enough():
    models = [steady(10), steady(5)]

    assert least_time_s(models, 15) == 0.0
    assert least_time_s(models, 16) == 60.0
    assert least_time_s(models, 31) == 120.0
    assert least_time_s([[Period(ALWAYS, 10), Period(30.0, 25)], steady(5)], 16) == 30.0


def test_models_that_may_never_send_never_end():
    assert least_time_s([steady(0)], 1) == math.inf
    assert even_time_s([steady(0)], 1) == math.inf
    assert least_time_s([steady(0)], 0) == 0.0


def test_an_even_pace_follows_a_change_of_the_limit():
    assert even_time_s([steady(60)], 90) == pytest.approx(90.0)
    assert even_time_s([[Period(ALWAYS, 60), Period(30.0, 30)]], 60) == pytest.approx(90.0)
    assert even_time_s([[Period(ALWAYS, 0), Period(30.0, 60)]], 10) == pytest.approx(40.0)


@given(st.integers(10, 50), st.integers(1, 200))
def test_bursts_are_never_slower_than_an_even_pace(rpm: int, calls: int):
    assert least_time_s([steady(rpm)], calls) <= even_time_s([steady(rpm)], calls)
