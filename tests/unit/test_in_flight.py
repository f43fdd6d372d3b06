"""in_flight.InFlight: cold calls never take the slots that are kept for hot ones, and none is lost."""

from __future__ import annotations

import itertools
import random

import pytest

from llmqueue.types import Complete, Grant, Room, Settlement, Task, Usage
from llmqueue.worker.batching import Batching
from llmqueue.worker.in_flight import MOST_ENDED, InFlight
from llmqueue.worker.planner import Planner


def grant(fence: int, *, is_hot: bool = False) -> Grant:
    return Grant("m", Task(fence, fence, 1, 5, 0, "why?", None, is_hot=is_hot), 0.0, 1.0, 60.0)


class Deaf:
    """A wake-up signal that nobody waits for."""

    is_set = False

    def set(self, what: str) -> None: ...


def empty(slots: int) -> InFlight:
    return InFlight(slots, Planner(random.Random(1)), Batching(can_batch=False), Deaf())


def end(fence: int) -> Settlement:
    return Settlement(grant(fence), Complete("42", Usage()), None, None)


def filled(slots: int, cold: int, hot: int) -> InFlight:
    found = empty(slots)
    for fence in range(cold + hot):
        found.take(grant(fence, is_hot=fence >= cold))
    return found


@pytest.mark.parametrize(
    ("slots", "cold", "hot", "room"),
    [
        (1, 0, 0, Room(1, 0)),
        (1, 1, 0, Room(0, 0)),
        (2, 0, 0, Room(1, 1)),
        (2, 1, 0, Room(0, 1)),
        (2, 0, 1, Room(1, 0)),
        (19, 0, 0, Room(18, 1)),
        (1000, 0, 0, Room(900, 100)),
        (1000, 900, 0, Room(0, 100)),
        (1000, 899, 0, Room(1, 100)),
        (1000, 900, 40, Room(0, 60)),
        (1000, 0, 40, Room(900, 60)),  # hot calls take the slots that are kept for them first
        (1000, 0, 100, Room(900, 0)),
        (1000, 0, 250, Room(750, 0)),
        (1000, 750, 250, Room(0, 0)),
        (10, 8, 1, Room(1, 0)),
    ],
)
def test_a_tenth_and_at_least_one_is_kept_for_hot_tasks(slots: int, cold: int, hot: int, room: Room) -> None:
    assert filled(slots, cold, hot).room() == room


@pytest.mark.parametrize(
    ("at_most", "room"), [(200, Room(5, 100)), (50, Room(5, 45)), (5, Room(5, 0)), (1, Room(1, 0))]
)
def test_a_claim_is_cut_from_the_hot_end(at_most: int, room: Room) -> None:
    assert filled(1000, 895, 0).room().cut(at_most) == room


def test_a_slot_is_freed_once() -> None:
    slots = filled(10, 9, 0)

    slots.settled(end(0), 0.0)
    slots.settled(end(0), 0.0)
    slots.settled(end(99), 0.0)

    assert slots.room() == Room(1, 1)
    assert len(slots.fences) == 8


def test_a_slot_is_free_while_the_end_of_its_call_is_written() -> None:
    slots = filled(10, 9, 0)

    slots.ended(end(0))
    slots.ended(end(0))
    slots.ended(end(99))

    assert slots.room() == Room(1, 1)
    assert len(slots.fences) == 9
    slots.settled(end(0), 0.0)
    assert slots.room() == Room(1, 1)


@pytest.mark.parametrize(("total", "most"), [(1, 1), (3, 3), (10, 10), (300, MOST_ENDED)])
def test_ends_that_wait_longer_than_a_flush_hold_their_slots(total: int, most: int) -> None:
    slots = empty(total)
    fences = itertools.count()
    ended = 0
    while room := slots.room().total:
        started = [grant(next(fences), is_hot=True) for _ in range(room)]
        for each in started:
            slots.take(each)
        for each in started:
            slots.ended(Settlement(each, Complete("42", Usage()), None, None))
        ended += room

    assert ended == len(slots.fences) == total + most
    slots.settled(Settlement(grant(0, is_hot=True), Complete("42", Usage()), None, None), 0.0)
    assert slots.room() == (Room(1, 0) if total == 1 else Room(0, 1))


def test_an_end_from_the_spill_of_another_worker_frees_no_slot_of_ours() -> None:
    """After a restore a fence may be given out twice: the end of another grant under it is not ours."""
    slots = filled(2, cold=1, hot=0)
    theirs = Grant("n", Task(7, 0, 1, 5, 0, None, None), 0.0, 0.0, 60.0)

    slots.settled(Settlement(theirs, Complete("42", Usage()), None, None), 0.0)

    assert list(slots.fences) == [0]
    assert slots.calls == 1


@pytest.mark.parametrize("total", [1, 2, 3, 9, 10, 11, 50])
def test_whatever_comes_and_goes_the_slots_add_up(total: int) -> None:
    rng = random.Random(total)
    slots, kept = empty(total), 0 if total == 1 else max(1, total // 10)
    running: list[Grant] = []
    for fence in range(2000):
        room = slots.room()
        cold = sum(not each.task.is_hot for each in running)
        assert room.total == total - len(running)
        assert (room.for_any > 0) == (cold < total - kept and len(running) < total)
        can_start = room.for_any > 0, room.total > 0
        is_hot = rng.random() < 0.4
        if can_start[is_hot] and rng.random() < 0.6:
            running.append(grant(fence, is_hot=is_hot))
            slots.take(running[-1])
        elif running:
            done = running.pop(rng.randrange(len(running)))
            slots.settled(Settlement(done, Complete("42", Usage()), None, None), 0.0)
        assert slots.fences == {each.task.fence for each in running}
        assert sum(not each.task.is_hot for each in running) <= total - kept
