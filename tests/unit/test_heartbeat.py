"""heartbeat.Heartbeat: which chores are due, so that they ride along with a claim."""

from __future__ import annotations

from typing import cast

import pytest

from llmqueue.db.store import Store
from llmqueue.worker import heartbeat
from llmqueue.worker.heartbeat import Heartbeat


class Clock:
    """The monotonic clock, in the test's hand."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(heartbeat, "time", clock)
    return clock


def test_every_chore_is_due_at_its_own_pace(clock: Clock) -> None:
    chores = Heartbeat(cast("Store", None), "name", None, lease_s=20.0, guard_s=0.5)
    assert set(chores.due_chores()) == {"heartbeat", "sweep", "promote", "prune", "calibrate"}
    done: dict[str, int] = dict.fromkeys(chores.due_chores(), 0)
    chores.done(chores.due_chores())
    assert chores.due_chores() == []

    for _ in range(120):
        clock.now += 0.5
        for chore in chores.due_chores():
            done[chore] += 1
        chores.done(chores.due_chores())

    assert done == {"promote": 120, "heartbeat": 15, "sweep": 15, "prune": 2, "calibrate": 2}


def test_nobody_is_swept_while_answers_of_attempts_that_look_lost_wait(clock: Clock) -> None:
    chores = Heartbeat(cast("Store", None), "name", None, lease_s=20.0, guard_s=0.5)
    is_behind = True
    chores.may_sweep = lambda: not is_behind

    assert set(chores.due_chores()) == {"heartbeat", "promote", "prune", "calibrate"}
    is_behind = False
    assert "sweep" in chores.due_chores()
