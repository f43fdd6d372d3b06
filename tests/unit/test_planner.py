"""schedule.Planner: which model is asked when; a refused one is not asked before its time, none is forgotten."""

from __future__ import annotations

import math

import pytest

from llmqueue.types import Refusal
from llmqueue.worker.planner import CONTENDED_S, GRID_S, JITTER_S, OF_WINDOWS, SPREAD_S, Planner

# those that come with the time when more may be had
TIMED = ["rpm", "pace", "burst", "tpm", "day", "closed"]


@pytest.fixture
def schedule() -> Planner:
    return Planner()


def note(
    schedule: Planner, model: str, reason: str | None, retry_in_s: float | None = None, now: float = 100.0
) -> None:
    schedule.note(Refusal(model, reason, retry_in_s), now)


def note_hot(
    schedule: Planner,
    model: str,
    reason: str | None,
    retry_in_s: float | None = None,
    now: float = 100.0,
    *,
    has_given: bool = False,
) -> None:
    schedule.note_hot(Refusal(model, reason, retry_in_s), now, has_given=has_given)


def test_nothing_is_due_before_the_first_verdict(schedule: Planner) -> None:
    assert schedule.due(1e9) == []
    assert schedule.next_at() == math.inf


def test_a_model_that_gave_all_is_asked_again_at_once(schedule: Planner) -> None:
    note(schedule, "m", None)

    assert schedule.due(100.0) == ["m"]


@pytest.mark.parametrize("reason", TIMED)
def test_a_refused_model_is_asked_when_it_said_and_not_before(schedule: Planner, reason: str) -> None:
    note(schedule, "m", reason, 2.5)

    latest = 102.5 + GRID_S + JITTER_S + (SPREAD_S if reason in OF_WINDOWS else 0)
    assert schedule.due(102.4999) == []
    assert 102.5 <= schedule.next_at() <= latest
    assert schedule.due(latest) == ["m"]


def test_models_refused_for_about_as_long_are_asked_together(schedule: Planner) -> None:
    for n in range(10):
        note(schedule, f"m{n}", "pace", 0.25 + n / 250)

    assert len({schedule._ask_at[f"m{n}"] for n in range(10)}) <= 3


def test_models_whose_windows_have_room_at_the_same_moment_are_asked_apart_by_every_worker_alike() -> None:
    workers = [Planner(), Planner()]
    for schedule in workers:
        for n in range(30):
            note(schedule, f"m{n}", "rpm", 0.25)

    # less than a cell with all that comes on top, or the window would not be used up
    assert SPREAD_S + GRID_S + JITTER_S < 0.25
    one, other = ([schedule._ask_at[f"m{n}"] for n in range(30)] for schedule in workers)
    assert len(set(one)) >= 3
    assert max(one) <= 100.25 + SPREAD_S + GRID_S + JITTER_S
    assert all(abs(at - other_at) <= GRID_S + JITTER_S for at, other_at in zip(one, other, strict=True))


def test_a_hot_task_is_asked_for_without_regard_to_the_others(schedule: Planner) -> None:
    schedule.note(Refusal("m", None, None), 100.0)
    schedule.hot_came(100.0)
    note(schedule, "m", "pace", 0.3)

    assert 100.3 <= schedule.next_hot_at() <= 100.3 + JITTER_S


def test_a_time_in_the_past_means_now(schedule: Planner) -> None:
    note(schedule, "m", "pace", -3.0)

    assert 100.0 <= schedule.next_at() <= 100.0 + GRID_S + JITTER_S


def test_a_contended_model_is_asked_again_soon(schedule: Planner) -> None:
    note(schedule, "m", "contended")

    assert 100.0 + CONTENDED_S[0] <= schedule.next_at() <= 100.0 + CONTENDED_S[1]


@pytest.mark.parametrize("reason", ["empty", "paused", "concurrency", "closed", "a word of a newer schema"])
def test_the_others_wait_for_a_bell_or_the_poll(schedule: Planner, reason: str) -> None:
    note(schedule, "m", reason)

    assert schedule.due(1e9) == []


def test_an_unknown_model_is_forgotten(schedule: Planner) -> None:
    note(schedule, "m", None)
    note(schedule, "m", "unknown")
    schedule.config_changed(200.0)

    assert schedule.due(1e9) == []


def test_a_task_wakes_the_empty_and_only_them(schedule: Planner) -> None:
    for model, reason in (("empty", "empty"), ("paused", "paused"), ("full", "concurrency")):
        note(schedule, model, reason)
    note(schedule, "limited", "rpm", 50.0)
    assert schedule.has_empty

    schedule.task_came(101.0)

    assert schedule.due(101.0) == ["empty"]


def test_a_freed_slot_wakes_its_own_full_model(schedule: Planner) -> None:
    note(schedule, "full", "concurrency")
    note(schedule, "other", "concurrency")

    schedule.slot_freed("full", 101.0)
    schedule.slot_freed("never heard of", 101.0)

    assert schedule.due(101.0) == ["full"]


def test_a_change_of_config_wakes_all(schedule: Planner) -> None:
    for model, reason in (("a", "empty"), ("b", "paused"), ("c", "concurrency")):
        note(schedule, model, reason)
    note(schedule, "d", "rpm", 50.0)

    schedule.config_changed(101.0)

    assert sorted(schedule.due(101.0)) == ["a", "b", "c", "d"]


def test_a_later_verdict_replaces_an_earlier_one(schedule: Planner) -> None:
    note(schedule, "m", "empty")
    note(schedule, "m", "rpm", 5.0)
    assert not schedule.has_empty

    schedule.task_came(101.0)

    assert schedule.due(101.0) == []


def test_a_day_s_quota_is_waited_for_that_long(schedule: Planner) -> None:
    note(schedule, "m", "day", 40_000.0)

    assert schedule.due(40_099.0) == []
    assert schedule.due(40_100.0 + GRID_S + JITTER_S) == ["m"]


# --- hot tasks --------------------------------------------------------------------------------------------------


def test_a_hot_task_wakes_all_whatever_they_said(schedule: Planner) -> None:
    for model, reason in (("empty", "empty"), ("paused", "paused"), ("full", "concurrency")):
        note(schedule, model, reason)
    for reason in TIMED:
        note(schedule, reason, reason, 50.0)

    schedule.hot_came(101.0)

    assert sorted(schedule.due(101.0)) == sorted(["empty", "paused", "full", *TIMED])
    assert sorted(schedule.hot_due(101.0)) == sorted(schedule.due(101.0))


def test_without_a_hot_task_no_model_is_asked_for_one(schedule: Planner) -> None:
    for model, reason in (("more", None), ("empty", "empty"), ("soon", "contended"), ("limited", "rpm")):
        note(schedule, model, reason, 0.0)
    schedule.task_came(101.0)
    schedule.config_changed(101.0)

    assert schedule.hot_due(1e9) == []
    assert schedule.next_hot_at() == math.inf


@pytest.mark.parametrize("reason", TIMED)
def test_a_hot_task_that_was_refused_is_asked_for_when_it_said(schedule: Planner, reason: str) -> None:
    note(schedule, "m", None)
    schedule.hot_came(100.0)
    note_hot(schedule, "m", reason, 0.3)

    assert schedule.hot_due(100.2999) == []
    assert schedule.hot_due(100.3 + JITTER_S) == ["m"]
    assert 100.3 <= schedule.next_hot_at() <= 100.3 + JITTER_S


@pytest.mark.parametrize("reason", [None, "empty", "paused", "unknown"])
def test_a_model_without_hot_tasks_is_not_asked_again_and_its_cold_ones_keep_their_time(
    schedule: Planner, reason: str | None
) -> None:
    note(schedule, "m", None)
    schedule.hot_came(100.0)

    note_hot(schedule, "m", reason)

    assert schedule.hot_due(1e9) == []
    assert schedule.due(100.0) == ["m"]
    assert not schedule.has_empty


def test_a_model_that_gave_hot_tasks_may_have_more(schedule: Planner) -> None:
    note_hot(schedule, "m", None, has_given=True)

    assert schedule.hot_due(100.0) == ["m"]


def test_a_hot_task_that_waits_is_remembered_when_only_hot_slots_are_left(schedule: Planner) -> None:
    note(schedule, "m", None)
    schedule.hot_came(100.0)
    note(schedule, "m", "pace", 0.5)

    assert schedule.hot_due(100.4) == []
    assert schedule.hot_due(100.5 + JITTER_S) == ["m"]


def test_a_claim_that_found_nothing_at_all_found_no_hot_task_either(schedule: Planner) -> None:
    note(schedule, "m", "rpm", 50.0)
    schedule.hot_came(100.0)
    note(schedule, "m", "empty")

    assert schedule.hot_due(1e9) == []


def test_a_freed_slot_wakes_the_hot_task_of_a_full_model_and_no_other(schedule: Planner) -> None:
    note_hot(schedule, "full", "concurrency")
    note_hot(schedule, "limited", "rpm", 50.0)

    for model in ("full", "limited", "never heard of"):
        schedule.slot_freed(model, 101.0)

    assert schedule.hot_due(101.0) == ["full"]


def test_an_unknown_model_is_forgotten_for_hot_tasks_too(schedule: Planner) -> None:
    note(schedule, "m", None)
    schedule.hot_came(100.0)
    note(schedule, "m", "unknown")
    schedule.hot_came(101.0)

    assert schedule.hot_due(1e9) == []
