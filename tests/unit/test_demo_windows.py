"""Sliding windows against a limit that changes."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmqueue.demo.windows import Period, change_periods, fullest, limit_at, share_used, windows
from llmqueue.fake_backend import worst_window

ALWAYS = -math.inf
arrivals = st.lists(st.integers(0, 300).map(float), max_size=60)


@given(arrivals)
def test_the_fullest_window_is_the_one_the_simulator_finds(times: list[float]):
    found = fullest(windows(times, [Period(ALWAYS, 5)]))

    assert (found.calls if found else 0) == worst_window(times)


@given(arrivals, st.integers(0, 300), st.integers(0, 20), st.integers(0, 20))
def test_each_window_is_held_to_the_limit_of_its_end(times: list[float], at: int, before: int, after: int):
    found = windows(times, [Period(ALWAYS, before), Period(at, after)])

    for window in found:
        calls = sum(window.at_s - 60 < other <= window.at_s for other in times)
        limit = before if window.at_s < at else after
        assert window.rpm == limit
        # calls that arrive in the same moment end one window after the other
        assert window.calls <= calls
    assert any(w.is_over for w in found) == any(
        sum(t - 60 < other <= t for other in times) > (before if t < at else after) for t in times
    )


def test_a_call_60_s_earlier_is_outside_of_the_window():
    found = windows([0.0, 59.999, 60.0], [Period(ALWAYS, 2)])

    assert [window.calls for window in found] == [1, 2, 2]


def test_after_a_lowering_no_call_may_come_while_the_window_is_over_the_new_limit():
    periods = change_periods(3, 1, begun_s=10.0, committed_s=10.1, grace_s=0.75)

    in_time = windows([1.0, 2.0, 10.8], periods)
    too_late = windows([1.0, 2.0, 10.9], periods)
    with_room = windows([1.0, 2.0, 62.0], periods)

    assert not any(window.is_over for window in in_time)
    assert [window.is_over for window in too_late] == [False, False, True]
    assert not any(window.is_over for window in with_room)


def test_a_raise_holds_from_the_moment_its_statement_begins():
    periods = change_periods(1, 3, begun_s=10.0, committed_s=10.1, grace_s=0.75)

    assert not any(window.is_over for window in windows([1.0, 10.0, 10.05], periods))
    assert any(window.is_over for window in windows([1.0, 9.9], periods))


def test_a_limit_of_zero_is_exceeded_by_the_first_call():
    (window,) = windows([1.0], [Period(ALWAYS, 0)])

    assert window.is_over
    assert window.share == 1.0


def test_the_limit_before_the_first_period_is_zero():
    assert limit_at([Period(5.0, 7)], 4.9) == 0
    assert limit_at([Period(5.0, 7)], 5.0) == 7


def test_share_used_is_the_average_over_time_of_how_full_the_windows_are():
    # one call at 0, one at 30: the window holds 2 of 2 until 60, 1 until 90, none until 100
    share = share_used([0.0, 30.0], [Period(ALWAYS, 2)], 50.0, 100.0)

    assert share == pytest.approx((10 * 1.0 + 30 * 0.5) / 50)


def test_share_used_counts_a_window_over_a_lowered_limit_as_full():
    share = share_used([0.0, 1.0, 2.0, 3.0], [Period(ALWAYS, 4), Period(10.0, 2)], 10.0, 60.0)

    assert share == pytest.approx(1.0)


def test_share_used_of_no_time_at_all_is_unknown():
    assert share_used([1.0], [Period(ALWAYS, 2)], 60.0, 60.0) is None


def test_no_call_has_no_fullest_window():
    assert fullest(windows([], [Period(ALWAYS, 2)])) is None
