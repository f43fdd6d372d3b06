"""ask_times.AskTimes: which model is asked when; a refused one is not asked before its time, none is forgotten."""

from __future__ import annotations

import math
import random

import pytest

from llmqueue.types import Refusal
from llmqueue.worker.ask_times import CONTENDED_S, GRID_S, JITTER_S, OF_WINDOWS, SPREAD_S, AskTimes

# those that come with the time when more may be had
TIMED = ["rpm", "pace", "burst", "tpm", "day", "cooldown"]


@pytest.fixture
def times() -> AskTimes:
    return AskTimes(random.Random())


def note(times: AskTimes, model: str, reason: str | None, retry_in_s: float | None = None, now: float = 100.0) -> None:
    times.note(Refusal(model, reason, retry_in_s), now)


def note_hot(
    times: AskTimes,
    model: str,
    reason: str | None,
    retry_in_s: float | None = None,
    now: float = 100.0,
    *,
    has_given: bool = False,
) -> None:
    times.note_hot(Refusal(model, reason, retry_in_s), now, has_given=has_given)


def test_nothing_is_due_before_the_first_refusal(times: AskTimes) -> None:
    assert times.due(1e9) == []
    assert times.next_at() == math.inf


def test_a_model_that_gave_all_is_asked_again_at_once(times: AskTimes) -> None:
    note(times, "m", None)

    assert times.due(100.0) == ["m"]


@pytest.mark.parametrize("reason", TIMED)
def test_a_refused_model_is_asked_when_it_said_and_not_before(times: AskTimes, reason: str) -> None:
    note(times, "m", reason, 2.5)

    latest = 102.5 + GRID_S + JITTER_S + (SPREAD_S if reason in OF_WINDOWS else 0)
    assert times.due(102.4999) == []
    assert 102.5 <= times.next_at() <= latest
    assert times.due(latest) == ["m"]


def test_models_refused_for_about_as_long_are_asked_together(times: AskTimes) -> None:
    for n in range(10):
        note(times, f"m{n}", "pace", 0.25 + n / 250)

    assert len({times._ask_at[f"m{n}"] for n in range(10)}) <= 3


def test_models_whose_windows_have_room_at_the_same_moment_are_asked_apart_by_every_worker_alike() -> None:
    workers = [AskTimes(random.Random()), AskTimes(random.Random())]
    for times in workers:
        for n in range(30):
            note(times, f"m{n}", "rpm", 0.25)

    # less than a cell with all that comes on top, or the window would not be used up
    assert SPREAD_S + GRID_S + JITTER_S < 0.25
    one, other = ([times._ask_at[f"m{n}"] for n in range(30)] for times in workers)
    assert len(set(one)) >= 3
    assert max(one) <= 100.25 + SPREAD_S + GRID_S + JITTER_S
    assert all(abs(at - other_at) <= GRID_S + JITTER_S for at, other_at in zip(one, other, strict=True))


def test_a_hot_task_is_asked_for_without_regard_to_the_others(times: AskTimes) -> None:
    times.note(Refusal("m", None, None), 100.0)
    times.hot_came(100.0)
    note(times, "m", "pace", 0.3)

    assert 100.3 <= times.next_hot_at() <= 100.3 + JITTER_S


def test_a_time_in_the_past_means_now(times: AskTimes) -> None:
    note(times, "m", "pace", -3.0)

    assert 100.0 <= times.next_at() <= 100.0 + GRID_S + JITTER_S


def test_a_contended_model_is_asked_again_soon(times: AskTimes) -> None:
    note(times, "m", "contended")

    assert 100.0 + CONTENDED_S[0] <= times.next_at() <= 100.0 + CONTENDED_S[1]


@pytest.mark.parametrize("reason", ["empty", "paused", "concurrency", "cooldown", "a word of a newer schema"])
def test_the_others_wait_for_a_wake_up_or_the_poll(times: AskTimes, reason: str) -> None:
    note(times, "m", reason)

    assert times.due(1e9) == []


def test_an_unknown_model_is_forgotten(times: AskTimes) -> None:
    note(times, "m", None)
    note(times, "m", "unknown")
    times.config_changed(200.0)

    assert times.due(1e9) == []


def test_a_task_wakes_the_empty_and_only_them(times: AskTimes) -> None:
    for model, reason in (("empty", "empty"), ("paused", "paused"), ("full", "concurrency")):
        note(times, model, reason)
    note(times, "limited", "rpm", 50.0)
    assert times.has_empty

    times.task_came(101.0)

    assert times.due(101.0) == ["empty"]


def test_a_freed_slot_wakes_its_own_full_model(times: AskTimes) -> None:
    note(times, "full", "concurrency")
    note(times, "other", "concurrency")

    times.slot_freed("full", 101.0)
    times.slot_freed("never heard of", 101.0)

    assert times.due(101.0) == ["full"]


def test_a_change_of_config_wakes_all(times: AskTimes) -> None:
    for model, reason in (("a", "empty"), ("b", "paused"), ("c", "concurrency")):
        note(times, model, reason)
    note(times, "d", "rpm", 50.0)

    times.config_changed(101.0)

    assert sorted(times.due(101.0)) == ["a", "b", "c", "d"]


def test_a_later_refusal_replaces_an_earlier_one(times: AskTimes) -> None:
    note(times, "m", "empty")
    note(times, "m", "rpm", 5.0)
    assert not times.has_empty

    times.task_came(101.0)

    assert times.due(101.0) == []


def test_a_day_s_quota_is_waited_for_that_long(times: AskTimes) -> None:
    note(times, "m", "day", 40_000.0)

    assert times.due(40_099.0) == []
    assert times.due(40_100.0 + GRID_S + JITTER_S) == ["m"]


# --- hot tasks --------------------------------------------------------------------------------------------------


def test_a_hot_task_wakes_all_whatever_they_said(times: AskTimes) -> None:
    for model, reason in (("empty", "empty"), ("paused", "paused"), ("full", "concurrency")):
        note(times, model, reason)
    for reason in TIMED:
        note(times, reason, reason, 50.0)

    times.hot_came(101.0)

    assert sorted(times.due(101.0)) == sorted(["empty", "paused", "full", *TIMED])
    assert sorted(times.hot_due(101.0)) == sorted(times.due(101.0))


def test_without_a_hot_task_no_model_is_asked_for_one(times: AskTimes) -> None:
    for model, reason in (("more", None), ("empty", "empty"), ("soon", "contended"), ("limited", "rpm")):
        note(times, model, reason, 0.0)
    times.task_came(101.0)
    times.config_changed(101.0)

    assert times.hot_due(1e9) == []
    assert times.next_hot_at() == math.inf


@pytest.mark.parametrize("reason", TIMED)
def test_a_hot_task_that_was_refused_is_asked_for_when_it_said(times: AskTimes, reason: str) -> None:
    note(times, "m", None)
    times.hot_came(100.0)
    note_hot(times, "m", reason, 0.3)

    assert times.hot_due(100.2999) == []
    assert times.hot_due(100.3 + JITTER_S) == ["m"]
    assert 100.3 <= times.next_hot_at() <= 100.3 + JITTER_S


@pytest.mark.parametrize("reason", [None, "empty", "paused", "unknown"])
def test_a_model_without_hot_tasks_is_not_asked_again_and_its_cold_ones_keep_their_time(
    times: AskTimes, reason: str | None
) -> None:
    note(times, "m", None)
    times.hot_came(100.0)

    note_hot(times, "m", reason)

    assert times.hot_due(1e9) == []
    assert times.due(100.0) == ["m"]
    assert not times.has_empty


def test_a_model_that_gave_hot_tasks_may_have_more(times: AskTimes) -> None:
    note_hot(times, "m", None, has_given=True)

    assert times.hot_due(100.0) == ["m"]


def test_a_hot_task_that_waits_is_remembered_when_only_hot_slots_are_left(times: AskTimes) -> None:
    note(times, "m", None)
    times.hot_came(100.0)
    note(times, "m", "pace", 0.5)

    assert times.hot_due(100.4) == []
    assert times.hot_due(100.5 + JITTER_S) == ["m"]


def test_a_claim_that_found_nothing_at_all_found_no_hot_task_either(times: AskTimes) -> None:
    note(times, "m", "rpm", 50.0)
    times.hot_came(100.0)
    note(times, "m", "empty")

    assert times.hot_due(1e9) == []


def test_a_freed_slot_wakes_the_hot_task_of_a_full_model_and_no_other(times: AskTimes) -> None:
    note_hot(times, "full", "concurrency")
    note_hot(times, "limited", "rpm", 50.0)

    for model in ("full", "limited", "never heard of"):
        times.slot_freed(model, 101.0)

    assert times.hot_due(101.0) == ["full"]


def test_an_unknown_model_is_forgotten_for_hot_tasks_too(times: AskTimes) -> None:
    note(times, "m", None)
    times.hot_came(100.0)
    note(times, "m", "unknown")
    times.hot_came(101.0)

    assert times.hot_due(1e9) == []
