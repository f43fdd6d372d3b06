"""An outage that ends just before the leases do: the first worker back must not count others as dead (I9)."""

from __future__ import annotations

import pytest

from tests.support.sql import Queue

LEASE_S = 20.0


@pytest.mark.parametrize("outage_s", [10.5, 15.5, 16.5, 19.9])
def test_an_outage_shorter_than_the_lease_costs_nobody_a_task(queue: Queue, outage_s: float) -> None:
    first_back = queue.register(LEASE_S)
    for _ in range(8):
        queue.advance(LEASE_S / 5)
        queue.beat(first_back)
        queue.beat()
    queue.model("m", 60000)
    queue.add(1)
    grant = queue.claim(1).only
    queue.advance(LEASE_S / 5)
    queue.beat(first_back)  # the other's is due, and does not get through any more

    queue.advance(outage_s)
    queue.beat(first_back)

    assert queue.sweep(first_back) == 0
    queue.beat()
    assert queue.complete(grant) == "completed"


def test_who_has_beaten_for_a_lease_after_an_outage_sweeps_the_dead(queue: Queue) -> None:
    first_back = queue.register(LEASE_S)
    queue.model("m", 60000)
    queue.add(1)
    grant = queue.claim(1).only
    queue.advance(15)
    for _ in range(6):
        queue.beat(first_back)
        queue.advance(LEASE_S / 5)
    queue.beat(first_back)

    assert queue.sweep(first_back) == 1
    assert queue.attempt(grant)["outcome"] == "lost"
