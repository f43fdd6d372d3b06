"""llmqueue.register: workers agree on a guard, and no change of it lets two windows overlap."""

from __future__ import annotations

from tests.support.sql import T0, Queue


def agreed(queue: Queue) -> float:
    return float(queue.value("select guard_s from llmqueue.limiter"))


def test_a_larger_guard_is_taken_at_once(queue: Queue) -> None:
    queue.register(guard_s=2)

    assert agreed(queue) == 2


def test_a_smaller_guard_is_taken_only_by_who_is_alone(queue: Queue) -> None:
    queue.register(guard_s=2)
    queue.register(guard_s=0.5)
    assert agreed(queue) == 2

    queue.advance(60)
    queue.register(guard_s=0.5)
    assert agreed(queue) == 0.5


def test_registering_again_is_harmless(queue: Queue) -> None:
    queue.advance(100)

    queue.register(worker=queue.worker)

    assert queue.rows("select heartbeat_at, beating_since, started_at from llmqueue.worker") == [
        {"heartbeat_at": queue.now, "beating_since": queue.now, "started_at": T0}
    ]


def test_the_guard_comes_with_every_grant(queue: Queue) -> None:
    queue.model("m")
    queue.add()
    queue.register(guard_s=3)

    assert queue.claim(1).only.guard_s == 3


def test_grants_under_a_large_guard_are_remembered_over_several_changes(queue: Queue) -> None:
    queue.register(guard_s=10)
    queue.model("m", 1)
    queue.add(3)
    queue.advance(100)
    assert queue.claim(1).only.guard_s == 10  # may be sent 10 s from now

    queue.register(guard_s=0.5)  # alone: everybody's lease has run out
    queue.advance(1)
    queue.register(guard_s=1)
    queue.advance(62)

    assert queue.claim(1).grants == []
    queue.advance(7.5)
    assert len(queue.claim(1).grants) == 1
