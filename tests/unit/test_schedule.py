"""dispatcher.Schedule: which model is asked when; a refused one is not asked before its time, none is forgotten."""

from __future__ import annotations

import math

import pytest

from llmqueue.dispatcher import CONTENDED_S, JITTER_S, Schedule
from llmqueue.models import Verdict


@pytest.fixture
def schedule() -> Schedule:
    return Schedule()


def note(
    schedule: Schedule, model: str, reason: str | None, retry_in_s: float | None = None, now: float = 100.0
) -> None:
    schedule.note(Verdict(model, reason, retry_in_s), now)


def test_nothing_is_due_before_the_first_verdict(schedule: Schedule) -> None:
    assert schedule.due(1e9) == []
    assert schedule.next_at() == math.inf


def test_a_model_that_gave_all_is_asked_again_at_once(schedule: Schedule) -> None:
    note(schedule, "m", None)

    assert schedule.due(100.0) == ["m"]


@pytest.mark.parametrize("reason", ["rpm", "pace"])
def test_a_refused_model_is_asked_when_it_said_and_not_before(schedule: Schedule, reason: str) -> None:
    note(schedule, "m", reason, 2.5)

    assert schedule.due(102.4999) == []
    assert 102.5 <= schedule.next_at() <= 102.5 + JITTER_S
    assert schedule.due(102.5 + JITTER_S) == ["m"]


def test_a_time_in_the_past_means_now(schedule: Schedule) -> None:
    note(schedule, "m", "rpm", -3.0)

    assert 100.0 <= schedule.next_at() <= 100.0 + JITTER_S


def test_a_contended_model_is_asked_again_soon(schedule: Schedule) -> None:
    note(schedule, "m", "contended")

    assert 100.0 + CONTENDED_S[0] <= schedule.next_at() <= 100.0 + CONTENDED_S[1]


@pytest.mark.parametrize("reason", ["empty", "paused", "concurrency"])
def test_the_others_wait_for_a_bell_or_the_poll(schedule: Schedule, reason: str) -> None:
    note(schedule, "m", reason)

    assert schedule.due(1e9) == []


def test_an_unknown_model_is_forgotten(schedule: Schedule) -> None:
    note(schedule, "m", None)
    note(schedule, "m", "unknown")
    schedule.config_changed(200.0)

    assert schedule.due(1e9) == []


def test_a_task_wakes_the_empty_and_only_them(schedule: Schedule) -> None:
    for model, reason in (("empty", "empty"), ("paused", "paused"), ("full", "concurrency")):
        note(schedule, model, reason)
    note(schedule, "limited", "rpm", 50.0)
    assert schedule.has_empty

    schedule.task_came(101.0)

    assert schedule.due(101.0) == ["empty"]


def test_a_freed_slot_wakes_its_own_full_model(schedule: Schedule) -> None:
    note(schedule, "full", "concurrency")
    note(schedule, "other", "concurrency")

    schedule.slot_freed("full", 101.0)
    schedule.slot_freed("never heard of", 101.0)

    assert schedule.due(101.0) == ["full"]


def test_a_change_of_config_wakes_all(schedule: Schedule) -> None:
    for model, reason in (("a", "empty"), ("b", "paused"), ("c", "concurrency")):
        note(schedule, model, reason)
    note(schedule, "d", "rpm", 50.0)

    schedule.config_changed(101.0)

    assert sorted(schedule.due(101.0)) == ["a", "b", "c", "d"]


def test_a_later_verdict_replaces_an_earlier_one(schedule: Schedule) -> None:
    note(schedule, "m", "empty")
    note(schedule, "m", "rpm", 5.0)
    assert not schedule.has_empty

    schedule.task_came(101.0)

    assert schedule.due(101.0) == []
