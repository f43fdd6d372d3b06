"""planner.Planner: when to claim what, told the time, the free slots and the signals, and nothing else."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

import pytest

from llmqueue.types import Claim, Grant, Refusal, Room, Task
from llmqueue.worker.planner import FIRST_CLAIM, MAX_CLAIM, POLL_S, Ask, Planner, Wait

FREE = Room(9, 1)
NOW = 100.0
EMPTY = Refusal("m", "empty", None)


class Run:
    """A planner that has asked once; `answer` is what the next claims find."""

    def __init__(self, **options: Any) -> None:
        self.planner = Planner(random.Random(1), **options)

    def ask(
        self, *found: Refusal, now: float = NOW, room: Room = FREE, due: tuple[str, ...] = (), given: int = 0
    ) -> Ask:
        """Decides, which must be to ask, and tells it what the claim found."""
        decision = self.planner.decide(now, room, due)
        assert isinstance(decision, Ask)
        task = Task(1, 1, 1, 5, 0, "why?", None)
        claim = Claim((Grant("m", task, now, now + 1, 60.0),) * given, found, None)
        self.planner.answered(decision, claim, now, gathering=())
        return decision

    def wait(self, now: float = NOW, room: Room = FREE) -> float:
        decision = self.planner.decide(now, room, ())
        assert isinstance(decision, Wait)
        return decision.until


@pytest.fixture
def run() -> Run:
    return Run()


def test_the_first_claim_asks_for_all_models_and_carries_what_is_due(run: Run) -> None:
    assert run.ask(EMPTY, due=("heartbeat", "sweep")) == Ask(None, FREE, ["heartbeat", "sweep"])


def test_without_a_free_slot_it_waits_for_a_poll(run: Run) -> None:
    assert run.wait(room=Room(0, 0)) == NOW + POLL_S


def test_an_idle_worker_announces_that_it_waits_and_looks_once_more_after_that(run: Run) -> None:
    run.ask(EMPTY)

    announcing = run.ask(EMPTY)
    after = run.ask(EMPTY)

    assert (announcing.models, announcing.maintenance) == (["m"], ["idle"])
    assert (after.models, after.maintenance) == (["m"], [])
    assert run.wait() == NOW + POLL_S


def test_a_worker_that_cannot_be_woken_announces_nothing() -> None:
    run = Run(can_announce=False)
    run.ask(EMPTY)

    assert run.wait() == NOW + POLL_S
    assert run.ask(EMPTY, now=NOW + POLL_S) == Ask(None, FREE, [])


def test_an_announcement_that_may_be_lost_is_made_again(run: Run) -> None:
    for _ in range(3):
        run.ask(EMPTY)

    run.planner.announcement_lost()

    assert run.ask(EMPTY, now=NOW + POLL_S).maintenance == ["idle"]


def test_a_worker_with_tasks_takes_its_announcement_back_with_the_next_heartbeat(run: Run) -> None:
    for _ in range(3):
        run.ask(EMPTY)
    run.planner.hear({"task"}, NOW)
    run.ask(Refusal("m", None, None), given=9)

    assert run.ask(Refusal("m", None, None), given=9).maintenance == []
    assert run.ask(Refusal("m", None, None), given=9, due=("heartbeat",)).maintenance == ["heartbeat", "busy"]


def test_a_refused_model_is_asked_at_its_time_without_the_others(run: Run) -> None:
    run.ask(Refusal("a", "pace", 0.3), Refusal("b", "cooldown", 600.0))

    until = run.wait()
    assert NOW + 0.3 <= until < NOW + 0.5
    assert run.ask(EMPTY, now=until).models == ["a"]


def test_a_hot_task_is_claimed_first_alone_and_not_twice_in_a_row(run: Run) -> None:
    run.ask(Refusal("m", "cooldown", 600.0))
    rooms = []
    for _ in range(4):
        run.planner.hear({"hot"}, NOW)
        rooms.append(run.ask(Refusal("m", "cooldown", 600.0)).room)

    assert rooms == [Room(0, 10), FREE] * 2


def test_claims_grow_by_a_tenth_and_halve_after_late_grants(run: Run) -> None:
    wide = Room(1000, 0)
    sizes = [run.ask(Refusal("m", None, None), room=wide, given=1).room.total for _ in range(30)]
    claimed = run.planner.granted(2, NOW, 0.1)
    run.planner.grant_ended(claimed, is_late=True)
    run.planner.grant_ended(claimed, is_late=False)

    assert sizes[0] == FIRST_CLAIM + FIRST_CLAIM // 10 + 1
    assert sizes == sorted(sizes)
    assert sizes[-1] == MAX_CLAIM
    assert run.ask(Refusal("m", None, None), room=wide).room.total == MAX_CLAIM // 2


def test_a_full_model_is_asked_again_if_a_slot_was_freed_while_it_was_claimed_for(run: Run) -> None:
    decision = run.planner.decide(NOW, FREE, ())
    assert isinstance(decision, Ask)
    run.planner.slot_freed("m", NOW)
    full = Refusal("m", "concurrency", None)
    run.planner.answered(decision, Claim((), (full, replace(full, model="other")), None), NOW, gathering=())

    assert run.planner.look_at(NOW, FREE) <= NOW
    assert run.ask(full).models == ["m"]
