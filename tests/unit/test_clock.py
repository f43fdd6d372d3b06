"""clock.ClockWatch: a database clock that jumps ahead is seen, a slow round trip is not taken for one (design I7)."""

from __future__ import annotations

from typing import cast

import pytest

from llmqueue.db.clock import ClockWatch
from llmqueue.db.store import Store
from llmqueue.errors import DatabaseUnreachable

pytestmark = pytest.mark.anyio


class Closing:
    """A store that only counts how often all models were closed."""

    def __init__(self) -> None:
        self.closed = 0
        self.is_away = False

    async def clock_stepped(self) -> None:
        if self.is_away:
            raise DatabaseUnreachable("away")
        self.closed += 1


@pytest.fixture
def store() -> Closing:
    return Closing()


@pytest.fixture
def watch(store: Closing) -> ClockWatch:
    return ClockWatch(cast(Store, store))


def seen(offset_s: float, round_trip_s: float = 0.002) -> tuple[float, float]:
    """What a claim reports when the database's clock is ahead by `offset_s`: at least and at most."""
    return offset_s - round_trip_s, offset_s


async def test_a_steady_clock_is_no_step_however_far_ahead(watch: ClockWatch, store: Closing) -> None:
    assert not any([await watch.has_stepped(seen(1e9)) for _ in range(100)])
    assert store.closed == 0


async def test_a_step_forward_closes_all_models_once(watch: ClockWatch, store: Closing) -> None:
    await watch.has_stepped(seen(0))

    assert await watch.has_stepped(seen(0.3))
    assert not await watch.has_stepped(seen(0.3))
    assert await watch.has_stepped(seen(3600))
    assert store.closed == 2


@pytest.mark.parametrize("round_trip_s", [0.5, 5.0, 14.0])
async def test_a_slow_round_trip_is_no_step(watch: ClockWatch, store: Closing, round_trip_s: float) -> None:
    for slow_s in (0.002, round_trip_s, 0.002, round_trip_s):
        assert not await watch.has_stepped(seen(0.0, slow_s))
        assert not await watch.has_stepped((0.0 - slow_s, slow_s))
    assert store.closed == 0


async def test_a_slow_round_trip_hides_no_later_step(watch: ClockWatch) -> None:
    await watch.has_stepped((-5.0, 5.0))
    await watch.has_stepped(seen(0.0))
    await watch.has_stepped((-5.0, 5.0))

    assert await watch.has_stepped(seen(0.3))


async def test_a_clock_that_drifts_is_followed(watch: ClockWatch, store: Closing) -> None:
    for n in range(1000):
        assert not await watch.has_stepped(seen(n * 0.001))
    assert store.closed == 0


async def test_a_step_back_and_forward_again_is_seen(watch: ClockWatch) -> None:
    await watch.has_stepped(seen(0))
    assert not await watch.has_stepped(seen(-10))

    assert await watch.has_stepped(seen(-9))


async def test_a_step_that_could_not_be_reported_is_seen_again(watch: ClockWatch, store: Closing) -> None:
    await watch.has_stepped(seen(0))
    store.is_away = True
    with pytest.raises(DatabaseUnreachable):
        await watch.has_stepped(seen(5))

    store.is_away = False
    assert await watch.has_stepped(seen(5))
    assert store.closed == 1
