"""claimer.Claimer and planner.Planner: what they ask for while only slots for hot tasks are free."""

from __future__ import annotations

import asyncio
import math
import random
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from itertools import count
from typing import cast

import anyio
import pytest
from structlog.testing import capture_logs

from llmqueue.backend.health import BackendHealth
from llmqueue.db.listen import WakeSignal
from llmqueue.db.outage import Outage
from llmqueue.db.store import Store
from llmqueue.spill.pending import PendingSettlements
from llmqueue.types import LATE, Claim, Complete, Grant, Refusal, Room, Settlement, Task, Usage
from llmqueue.worker import planner
from llmqueue.worker.batching import Batching
from llmqueue.worker.claimer import Claimer
from llmqueue.worker.executor import Executor
from llmqueue.worker.grant_expiry import CLAIMS, ClaimedGrants
from llmqueue.worker.heartbeat import Heartbeat
from llmqueue.worker.in_flight import InFlight
from llmqueue.worker.planner import MAX_CLAIM, Ask, Planner

pytestmark = pytest.mark.anyio

FENCE = count(1)
EMPTY = Refusal("other", "empty", None)
# A loop that spins asks hundreds of times in this.
SPIN_S = 0.1


def grant(model: str = "m", *, is_hot: bool = False) -> Grant:
    fence = next(FENCE)
    return Grant(model, Task(fence, fence, 1, 5, 0, "why?", None, is_hot=is_hot), 0.0, 1e9, 60.0)


@dataclass
class Asked:
    models: Sequence[str] | None
    room: Room
    maintenance: list[str]
    claim_state: str | None


class Database:
    """A store with a model of which `cold` and `hot` tasks are ready or that says `reason`, and one that is empty."""

    def __init__(self, order: list[str]) -> None:
        self.outage = Outage()
        self.order = order
        self.cold = 0
        self.hot = 0
        self.reason: str | None = None
        self.retry_in_s: float | None = None
        self.asked: list[Asked] = []
        self.claim_state: str | None = None
        self.is_silent = False
        self.at_each: Callable[[], object] = lambda: None
        self.at_claim: Callable[[], None] | None = None  # what happens while the next claim is under way

    async def register(self, *_: object) -> float:
        return 0.5

    async def maintain(self, *_: object) -> None: ...

    async def claim(
        self, models: Sequence[str] | None, room: Room, maintenance: list[str], _running: int, claim_state: str | None
    ) -> Claim:
        self.asked.append(Asked(models, room, maintenance, claim_state))
        self.at_each()
        self.order.append(f"claim of {room.for_any}, {room.for_hot}")
        await (anyio.sleep_forever() if self.is_silent else anyio.sleep(0))
        if self.at_claim is not None:
            at_claim, self.at_claim = self.at_claim, None
            at_claim()
        if self.reason is not None:
            return Claim((), (Refusal("m", self.reason, self.retry_in_s), EMPTY), None, self.claim_state)
        hot = min(self.hot, room.total)
        cold = min(self.cold, room.for_any, room.total - hot)
        self.hot, self.cold = self.hot - hot, self.cold - cold
        grants = tuple(grant(is_hot=n < hot) for n in range(hot + cold))
        is_all = len(grants) == room.total or (self.cold and cold == room.for_any)
        return Claim(grants, (Refusal("m", None if is_all else "empty", None), EMPTY), None, self.claim_state)


class Run:
    """A claimer of ten slots, one of them for hot tasks; `started` are the grants it began.

    With `is_loud`, `order` says what went on: a call is a task of the event loop and begins when it has its turn.
    """

    def __init__(self, slots: int = 10, *, is_loud: bool = False) -> None:
        self.order: list[str] = []
        self.database = Database(self.order if is_loud else [])
        self.wake = WakeSignal()
        self.started: list[Grant] = []
        store = cast(Store, self.database)
        health = BackendHealth(cast("object", None), "http://backend", self.wake)  # type: ignore[arg-type]
        health.is_reachable = True
        self.pending = PendingSettlements()
        decides = Planner(random.Random())
        self.batching = Batching(can_batch=False)
        self.in_flight = InFlight(slots, decides, self.batching, self.wake)
        heartbeat = Heartbeat(store, self.in_flight, self.pending, name="name", models=None, lease_s=20.0, guard_s=0.5)
        heartbeat.done(heartbeat.due())
        self.begin = self.begin_loudly if is_loud else self.started.append
        executor = cast(Executor, self)
        self.claimer = Claimer(store, self.wake, health, heartbeat, decides, self.in_flight, self.pending, executor)

    def start(self, grants: Sequence[Grant], claimed: ClaimedGrants) -> None:
        """What an executor does."""
        for [one], batch in self.batching.calls(grants):
            self.in_flight.take(one, claimed, batch)
            self.begin(one)

    def gathers(self, model: str) -> bool:
        return self.batching.gathers(model)

    def begin_loudly(self, _grant: Grant) -> None:
        asyncio.get_running_loop().call_soon(self.order.append, "call")

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        async with anyio.create_task_group() as group:
            group.start_soon(self.claimer.run)
            yield
            self.claimer.stop(claim_by=math.inf)

    async def until(self, is_so: Callable[[], bool]) -> None:
        with anyio.fail_after(20):
            while not is_so():
                await anyio.sleep(0.002)

    def end(self, ended: Grant, *, is_late: bool = False) -> None:
        decision = LATE if is_late else Complete("42", Usage())
        settlement = Settlement(ended, decision, None, None)
        self.in_flight.ended(settlement)
        self.in_flight.settled(settlement, time.monotonic())

    def call_ended(self, ended: Grant) -> None:
        """Its end is not in the database yet."""
        self.in_flight.ended(Settlement(ended, Complete("42", Usage()), None, None))

    async def fill_with_cold(self) -> None:
        self.database.cold = 1000
        await self.until(lambda: len(self.started) == 9)


@pytest.fixture
def run(anyio_backend: str) -> Run:
    return Run()


@pytest.fixture
def no_poll(monkeypatch: pytest.MonkeyPatch) -> None:
    """After the first: what happens then happens for another reason."""
    monkeypatch.setattr(planner, "POLL_S", 3600.0)


@pytest.mark.usefixtures("no_poll")
async def test_cold_tasks_leave_the_hot_slots_free_and_the_loop_waits(run: Run) -> None:
    async with run.running():
        await run.fill_with_cold()
        await anyio.sleep(SPIN_S)

    assert len(run.started) == 9
    assert [asked.room for asked in run.database.asked] == [Room(9, 1)]


@pytest.mark.usefixtures("no_poll")
async def test_a_hot_task_is_claimed_at_its_wake_up_though_cold_ones_fill_the_rest(run: Run) -> None:
    async with run.running():
        await run.fill_with_cold()
        run.database.hot = 1
        run.wake.set("hot")
        await run.until(lambda: len(run.started) == 10)

    assert run.started[-1].task.is_hot
    assert run.database.asked[-1].room == Room(0, 1)


@pytest.mark.usefixtures("no_poll")
async def test_a_hot_task_does_not_wait_for_a_claim_of_cold_ones_and_a_flood_leaves_them_every_other(run: Run) -> None:
    async with run.running():
        await run.fill_with_cold()
        run.database.reason, run.database.retry_in_s = "cooldown", 3600.0  # slots are free
        run.end(run.started[0])
        await anyio.sleep(SPIN_S)
        before = len(run.database.asked)
        for asked in range(before, before + 10):
            run.wake.set("hot")
            await run.until(lambda asked=asked: len(run.database.asked) > asked)  # type: ignore[misc]

    rooms = [asked.room for asked in run.database.asked[before : before + 10]]
    assert rooms == [Room(0, 2), Room(1, 1)] * 5


@pytest.mark.usefixtures("no_poll")
async def test_hot_tasks_beyond_their_quota_have_no_claims_of_their_own(run: Run) -> None:
    async with run.running():
        await run.fill_with_cold()
        run.database.reason, run.database.retry_in_s = "pace", 3600.0
        run.end(run.started[0])
        await anyio.sleep(SPIN_S)
        before = len(run.database.asked)
        for asked in (before, before + 2, before + 3, before + 4):
            run.wake.set("hot")
            await run.until(lambda asked=asked: len(run.database.asked) > asked)  # type: ignore[misc]

    rooms = [asked.room for asked in run.database.asked[before : before + 5]]
    assert rooms == [Room(0, 2), *[Room(1, 1)] * 4]


@pytest.mark.usefixtures("no_poll")
async def test_an_idle_worker_asks_once_for_a_task_that_is_hot(run: Run) -> None:
    run.database.reason = "empty"
    async with run.running():
        await run.until(lambda: len(run.database.asked) == 3)  # twice to say that it waits
        run.database.reason, run.database.hot = None, 1
        run.wake.set("task")
        run.wake.set("hot")
        await run.until(lambda: len(run.started) == 1)

    assert [asked.room.for_any for asked in run.database.asked] == [9] * 4


@pytest.mark.usefixtures("no_poll")
@pytest.mark.parametrize("reason", [None, "empty", "paused", "cooldown", "concurrency", "unknown"])
async def test_a_wake_up_without_a_hot_task_is_one_look(run: Run, reason: str | None) -> None:
    async with run.running():
        await run.fill_with_cold()
        run.database.reason = reason
        run.wake.set("hot")
        await run.until(lambda: len(run.database.asked) == 2)
        await anyio.sleep(SPIN_S)

    assert [asked.models and sorted(asked.models) for asked in run.database.asked] == [None, ["m", "other"]]


@pytest.mark.usefixtures("no_poll")
async def test_a_hot_task_that_is_refused_for_a_moment_is_asked_for_again_then(run: Run) -> None:
    async with run.running():
        await run.fill_with_cold()
        run.database.hot, run.database.reason, run.database.retry_in_s = 1, "pace", 0.05
        before = len(run.database.asked)
        run.wake.set("hot")
        await run.until(lambda: len(run.database.asked) == before + 1)
        run.database.reason = None
        await run.until(lambda: len(run.started) == 10)

    assert run.started[-1].task.is_hot


async def test_a_hot_task_without_a_wake_up_is_found_by_the_poll(run: Run) -> None:
    async with run.running():
        await run.fill_with_cold()
        run.database.hot = 1
        await run.until(lambda: len(run.started) == 10)

    assert run.database.asked[-1].models is None


@pytest.mark.usefixtures("no_poll")
async def test_a_slot_that_a_cold_call_leaves_goes_to_the_next_at_once(run: Run) -> None:
    async with run.running():
        await run.fill_with_cold()
        run.wake.set("hot")  # an answer for hot tasks alone must not hide that there are cold ones
        await run.until(lambda: len(run.database.asked) == 2)
        for _ in range(20):
            started = len(run.started)
            run.end(run.started[-1])
            await run.until(lambda started=started: len(run.started) == started + 1)  # type: ignore[misc]

    assert [asked.room for asked in run.database.asked[2:]] == [Room(1, 1)] * 20


@pytest.mark.usefixtures("no_poll")
async def test_the_next_call_does_not_wait_until_the_end_of_the_last_is_written(run: Run) -> None:
    async with run.running():
        await run.fill_with_cold()
        for number in range(10):
            run.call_ended(run.started[number])
            await run.until(lambda number=number: len(run.started) == 10 + number)  # type: ignore[misc]
        run.call_ended(run.started[10])  # of ten slots eleven ends wait: too many for a flush
        await anyio.sleep(SPIN_S)
        assert len(run.started) == 19
        run.end(run.started[0])
        await run.until(lambda: len(run.started) == 20)

    assert [asked.room for asked in run.database.asked[1:]] == [Room(1, 1)] * 11


@pytest.mark.usefixtures("no_poll")
async def test_a_model_that_is_full_is_asked_again_when_an_end_was_written_meanwhile(run: Run) -> None:
    async with run.running():
        await run.fill_with_cold()
        [first, *_] = run.started
        run.database.reason = "concurrency"
        end = Settlement(first, Complete("42", Usage()), None, None)
        run.database.at_claim = lambda: run.in_flight.settled(end, time.monotonic())
        run.call_ended(first)
        await run.until(lambda: any("m" in (asked.models or []) for asked in run.database.asked[2:]))


async def test_the_next_claim_goes_out_before_the_calls_of_a_full_one_begin() -> None:
    run = Run(slots=1000, is_loud=True)
    run.database.cold = 40
    async with run.running():
        await run.until(lambda: run.order.count("call") == 40)

    assert run.order[:42] == ["claim of 36, 0", "claim of 40, 0", *["call"] * 40]


async def test_a_claimer_that_is_always_given_all_can_be_cancelled() -> None:
    run = Run(slots=1000)
    run.database.cold = 10**12

    def go_on() -> None:
        assert len(run.database.asked) < 1000, "it was cancelled long ago"
        for started in run.started[-200:]:
            run.end(started)

    run.database.at_each = go_on
    async with anyio.create_task_group() as group:
        group.start_soon(run.claimer.run)
        await run.until(lambda: len(run.database.asked) > 20)
        group.cancel_scope.cancel()


async def test_a_hot_call_begins_before_the_next_claim_goes_out() -> None:
    run = Run(is_loud=True)
    run.database.reason, run.database.retry_in_s = "cooldown", 3600.0
    async with run.running():
        await anyio.sleep(SPIN_S)
        run.order.clear()
        run.database.reason, run.database.hot = None, 1
        run.wake.set("hot")
        await run.until(lambda: len(run.order) == 3)

    assert run.order == ["claim of 0, 10", "call", "claim of 9, 0"]


@pytest.mark.usefixtures("no_poll")
async def test_the_hot_slot_of_an_ended_hot_call_is_no_cold_one(run: Run) -> None:
    async with run.running():
        await run.fill_with_cold()
        run.database.hot = 1
        run.wake.set("hot")
        await run.until(lambda: len(run.started) == 10)
        run.end(run.started[-1])
        await anyio.sleep(SPIN_S)

    assert [grant.task.is_hot for grant in run.started] == [False] * 9 + [True]
    assert len(run.in_flight.fences) == 9


async def test_hot_tasks_may_take_every_slot(run: Run) -> None:
    run.database.hot = 25
    async with run.running():
        await run.until(lambda: len(run.started) == 10)
        await anyio.sleep(SPIN_S)

    assert len(run.started) == 10


async def test_a_poll_that_only_hot_slots_were_free_for_is_made_up_for(run: Run) -> None:
    async with run.running():
        await run.fill_with_cold()
        polls = len(run.database.asked)
        await run.until(lambda: len(run.database.asked) > polls)  # the poll of the hot slot
        run.end(run.started[0])
        await run.until(lambda: len(run.started) == 10)

    assert (run.database.asked[-1].models, run.database.asked[-1].room) == (None, Room(1, 1))


async def test_whose_turn_it_was_is_told_to_the_next_claim(run: Run) -> None:
    run.database.claim_state = '{"p": {"m": 1}}'
    async with run.running():
        await run.until(lambda: len(run.database.asked) >= 2)
        run.database.claim_state = None  # nothing new: what was said before still holds
        before = len(run.database.asked)
        run.wake.set("config")
        await run.until(lambda: len(run.database.asked) > before)
        run.wake.set("config")
        await run.until(lambda: len(run.database.asked) > before + 1)

    first, *others = [asked.claim_state for asked in run.database.asked]
    assert first is None
    assert set(others) == {'{"p": {"m": 1}}'}


async def test_late_grants_halve_the_next_claim_hot_slots_and_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(planner, "FIRST_CLAIM", MAX_CLAIM)
    run = Run(slots=1000)
    run.database.cold = MAX_CLAIM
    async with run.running():
        await run.until(lambda: len(run.started) == MAX_CLAIM)
        for each in list(run.started):
            run.end(each, is_late=True)
        before = len(run.database.asked)
        run.wake.set("config")
        await run.until(lambda: len(run.database.asked) > before)

    assert run.database.asked[before].room == Room(MAX_CLAIM // 2, 0)


async def test_a_worker_that_has_only_hot_slots_left_does_not_say_that_it_is_idle(run: Run) -> None:
    async with run.running():
        await run.fill_with_cold()
        run.wake.set("hot")
        await run.until(lambda: len(run.database.asked) == 2)

    assert [asked for asked in run.database.asked if "idle" in asked.maintenance] == []


async def test_grants_that_are_all_late_slow_the_claims_down_and_it_is_said(run: Run) -> None:
    run.database.cold = 100_000
    with capture_logs() as lines:
        async with run.running():
            ended = 0
            with anyio.fail_after(20):
                while not any(line["event"] == "grants_late" for line in lines):
                    for each in run.started[ended:]:
                        run.end(each, is_late=True)
                    ended = len(run.started)
                    await anyio.sleep(0.002)
            asked = len(run.database.asked)
            for _ in range(3):
                run.wake.set("task")
                await anyio.sleep(SPIN_S / 10)

    assert asked >= CLAIMS
    assert len(run.database.asked) == asked, "a pause that a wake does not end"


async def test_nothing_is_claimed_while_there_is_no_place_for_answers(run: Run) -> None:
    run.pending.is_full = True
    run.database.cold = 5
    async with run.running():
        await anyio.sleep(SPIN_S)
        assert (run.started, run.database.asked) == ([], [])
        run.pending.is_full = False
        await run.until(lambda: len(run.started) == 5)


async def test_a_stop_does_not_wait_for_a_silent_database_beyond_its_time(run: Run) -> None:
    run.database.is_silent = True
    with anyio.fail_after(20):
        async with anyio.create_task_group() as group:
            group.start_soon(run.claimer.run)
            await run.until(lambda: len(run.database.asked) == 1)
            run.claimer.stop(claim_by=anyio.current_time())
    assert len(run.database.asked) == 1


async def test_a_claim_sweeps_nobody_when_the_database_went_away_after_it_was_decided(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Before the claim goes out the claimer asks what is its own: answers may begin to wait meanwhile (design I9)."""
    run = Run()
    store = cast(Store, run.database)
    heartbeat = Heartbeat(store, run.in_flight, run.pending, name="name", models=None, lease_s=20.0, guard_s=0.5)
    heartbeat.spills_are_sent()
    ask = Ask(None, Room(1, 0), heartbeat.due())

    async def release_unknown_claims(_: object) -> int:
        run.pending.is_behind = True
        return 0

    monkeypatch.setattr(run.database, "release_unknown_claims", release_unknown_claims, raising=False)
    monkeypatch.setattr(run.claimer, "_heartbeat", heartbeat)
    monkeypatch.setattr(run.claimer, "_release_lost_until", time.monotonic() + 60)
    await run.claimer._claim(ask)

    assert "sweep" in ask.maintenance
    assert [asked.maintenance for asked in run.database.asked] == [[m for m in ask.maintenance if m != "sweep"]]
