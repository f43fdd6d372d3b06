"""heartbeat.Heartbeat: which maintenance is due, so that it goes out with a claim."""

from __future__ import annotations

from typing import cast

import pytest

from llmqueue.db.store import Store
from llmqueue.spill.pending import PendingSettlements
from llmqueue.worker import heartbeat
from llmqueue.worker.heartbeat import Heartbeat
from llmqueue.worker.in_flight import InFlight


class Clock:
    """The monotonic clock, in the test's hand."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


def heartbeat_of(pending: PendingSettlements) -> Heartbeat:
    """The heartbeat of a worker that has sent what former workers left."""
    found = Heartbeat(
        cast(Store, None), cast(InFlight, None), pending, name="name", models=None, lease_s=20.0, guard_s=0.5
    )
    found.spills_are_sent()
    return found


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(heartbeat, "time", clock)
    return clock


def test_every_step_is_due_at_its_own_pace(clock: Clock) -> None:
    heart = heartbeat_of(PendingSettlements())
    assert set(heart.due()) == {"heartbeat", "sweep", "promote", "prune", "calibrate"}
    done: dict[str, int] = dict.fromkeys(heart.due(), 0)
    heart.done(heart.due())
    assert heart.due() == []

    for _ in range(120):
        clock.now += 0.5
        for step in heart.due():
            done[step] += 1
        heart.done(heart.due())

    assert done == {"promote": 120, "heartbeat": 15, "sweep": 15, "prune": 2, "calibrate": 2}


def test_nobody_is_swept_while_answers_of_attempts_that_look_lost_wait(clock: Clock) -> None:
    pending = PendingSettlements()
    heart = heartbeat_of(pending)
    pending.is_behind = True

    assert set(heart.due()) == {"heartbeat", "promote", "prune", "calibrate"}
    pending.is_behind = False
    assert "sweep" in heart.due()


def test_nobody_is_swept_before_what_former_workers_left_has_been_sent(clock: Clock) -> None:
    heart = Heartbeat(
        cast(Store, None), cast(InFlight, None), PendingSettlements(), name="n", models=None, lease_s=20.0, guard_s=0.5
    )

    assert set(heart.due()) == {"heartbeat", "promote", "prune", "calibrate"}
    heart.spills_are_sent()
    assert "sweep" in heart.due()
