"""flusher.Flusher: every end reaches the database once it can, in order, and its slot is freed only then."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import cast
from uuid import UUID, uuid4

import anyio
import pytest
from structlog.testing import capture_logs

from llmqueue.db.outage import Outage
from llmqueue.db.store import Store
from llmqueue.errors import DatabaseSilent, DatabaseUnreachable, SqlError
from llmqueue.logs import Event
from llmqueue.spill.file import Database, Spill
from llmqueue.types import Complete, Grant, Retry, Settlement, Task, ThrottleKind, Usage
from llmqueue.worker import flusher as completer_module
from llmqueue.worker.flusher import MAX_FLUSH, Flusher

pytestmark = pytest.mark.anyio
Outcomes = Callable[[Sequence[Settlement]], dict[int, str]]


def end(fence: int, answer: str = "42") -> Settlement:
    task = Task(fence, fence, 1, 5, 0, "why?", None)
    return Settlement(Grant("m", task, 0.0, 1.0, 60.0), Complete(answer, Usage()), 0.0, 1.0)


class Recorder:
    """A store whose settle does what the test says; `flushes` are the fences of each call that came through."""

    def __init__(self) -> None:
        self.outage = Outage()
        self.flushes: list[list[int]] = []
        self.failures: list[Exception] = []
        self.outcomes: Outcomes = lambda batch: dict.fromkeys(fences(batch), "completed")
        self.at_start: Callable[[], object] = lambda: None
        self.gate = anyio.Event()
        self.gate.set()

    async def settle(self, batch: Sequence[Settlement], worker: UUID) -> dict[int, str]:
        self.at_start()
        await self.gate.wait()
        if self.failures:
            raise self.failures.pop(0)
        self.flushes.append(fences(batch))
        return self.outcomes(batch)


def fences(batch: Sequence[Settlement]) -> list[int]:
    return [settlement.grant.task.fence for settlement in batch]


class Run:
    """A flusher on a recorder; `settled` are the fences whose slots were freed."""

    def __init__(self) -> None:
        self.store = Recorder()
        self.settled: list[int] = []
        self.beat_failures: list[Exception] = []
        self.flusher = Flusher(
            cast(Store, self.store),
            lambda settlement: self.settled.append(settlement.grant.task.fence),
            Spill(Path("/nowhere"), uuid4(), Database("1/1", "db")),
            self.beat,
        )

    async def beat(self) -> None:
        if self.beat_failures:
            raise self.beat_failures.pop()
        self.store.flushes.append([])

    def silent_after_this(self, batch: Sequence[Settlement]) -> dict[int, str]:
        self.store.gate = anyio.Event()
        return dict.fromkeys(fences(batch), "completed")

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        async with anyio.create_task_group() as group:
            group.start_soon(self.flusher.run)
            yield
            group.cancel_scope.cancel()

    async def until(self, is_so: Callable[[], bool]) -> None:
        with anyio.fail_after(20):
            while not is_so():
                await anyio.sleep(0.005)


@pytest.fixture
def run(anyio_backend: str) -> Run:
    return Run()


async def test_ends_that_come_together_go_out_together(run: Run) -> None:
    async with run.running():
        for fence in range(50):
            run.flusher.put(end(fence))
        await run.until(lambda: len(run.settled) == 50)

    assert run.store.flushes == [list(range(50))]
    assert run.flusher.unsettled == 0


async def test_the_end_of_a_short_call_waits_for_no_company(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(completer_module, "LINGER_S", 3600.0)
    async with run.running():
        run.flusher.put(replace(end(1), latency_s=0.01))
        await run.until(lambda: run.settled == [1])


async def test_a_flush_is_bounded(run: Run) -> None:
    for fence in range(2 * MAX_FLUSH + 1):
        run.flusher.put(end(fence))
    async with run.running():
        await run.until(lambda: len(run.settled) == 2 * MAX_FLUSH + 1)

    assert [len(flush) for flush in run.store.flushes] == [MAX_FLUSH, MAX_FLUSH, 1]


async def test_the_next_flush_goes_out_before_the_last_ones_slots_are_freed_and_those_are_freed_meanwhile(
    run: Run,
) -> None:
    for fence in range(2 * MAX_FLUSH):
        run.flusher.put(end(fence))
    freed: list[int] = []
    run.store.at_start = lambda: freed.append(len(run.settled))
    run.store.outcomes = run.silent_after_this
    async with run.running():
        await run.until(lambda: len(run.settled) == MAX_FLUSH)
        run.store.gate.set()
        await run.until(lambda: len(run.settled) == 2 * MAX_FLUSH)

    assert freed == [0, 0]


async def test_a_bug_in_what_is_told_meanwhile_ends_the_worker(run: Run) -> None:
    for fence in range(2 * MAX_FLUSH):
        run.flusher.put(end(fence))

    def broken(settlement: Settlement) -> None:
        if settlement.grant.task.fence < MAX_FLUSH:
            raise RuntimeError("no slot")

    run.flusher._on_settled = broken
    with pytest.raises(RuntimeError, match="no slot"), anyio.fail_after(20):
        await run.flusher.run()


async def test_a_completer_that_is_never_done_can_be_cancelled(run: Run) -> None:
    fence = count()

    def go_on() -> None:
        assert len(run.store.flushes) < 1000, "it was cancelled long ago"
        for _ in range(MAX_FLUSH):
            run.flusher.put(end(next(fence)))

    go_on()
    run.store.at_start = go_on
    async with run.running():
        await run.until(lambda: len(run.store.flushes) > 3)


async def test_large_answers_do_not_share_a_flush(run: Run) -> None:
    for fence in range(4):
        run.flusher.put(end(fence, "x" * 5_000_000))
    async with run.running():
        await run.until(lambda: len(run.settled) == 4)

    assert run.store.flushes == [[0, 1], [2, 3]]


@pytest.mark.parametrize("error", [DatabaseUnreachable("away"), SqlError("raised")])
async def test_an_outage_loses_nothing_and_frees_no_slot_before_its_end(run: Run, error: Exception) -> None:
    run.store.failures = [error, error]
    run.flusher.put(end(1))
    async with run.running():
        await run.until(lambda: len(run.store.failures) == 1)
        assert run.settled == []
        run.flusher.put(end(2))
        await run.until(lambda: sorted(run.settled) == [1, 2])

    assert [fence for flush in run.store.flushes for fence in flush] == [1, 2]


async def test_a_flush_that_the_database_cannot_do_in_time_is_sent_in_ever_smaller_parts(run: Run) -> None:
    def slow(batch: Sequence[Settlement]) -> dict[int, str]:
        if len(batch) > 3:
            raise DatabaseSilent("the database has not answered for 15 s")
        return dict.fromkeys(fences(batch), "completed")

    run.store.outcomes = slow
    for fence in range(10):
        run.flusher.put(end(fence))
    async with run.running():
        await run.until(lambda: len(run.settled) == 10)

    assert run.settled == list(range(10))


async def test_a_heartbeat_that_is_not_answered_says_nothing_about_the_size(run: Run) -> None:
    run.store.failures = [DatabaseUnreachable("away")]
    run.beat_failures = [DatabaseSilent("the database has not answered for 4 s")] * 2
    for fence in range(10):
        run.flusher.put(end(fence))
    async with run.running():
        await run.until(lambda: len(run.settled) == 10)

    assert run.store.flushes == [[], list(range(10))]


async def test_a_busy_row_is_asked_for_again_and_keeps_its_slot(run: Run) -> None:
    asked = 0

    def outcomes(batch: Sequence[Settlement]) -> dict[int, str]:
        nonlocal asked
        asked += 1
        return {fence: "busy" if fence == 1 and asked < 3 else "completed" for fence in fences(batch)}

    run.store.outcomes = outcomes
    run.flusher.put(end(1))
    run.flusher.put(end(2))
    async with run.running():
        await run.until(lambda: run.settled == [2])
        assert run.flusher.unsettled == 1
        await run.until(lambda: run.settled == [2, 1])


@pytest.mark.parametrize("outcome", ["late", "quarantined", "unknown", "lost"])
async def test_every_other_outcome_frees_the_slot(run: Run, outcome: str) -> None:
    run.store.outcomes = lambda batch: dict.fromkeys(fences(batch), outcome)
    run.flusher.put(end(1))
    async with run.running():
        await run.until(lambda: run.settled == [1])


async def test_an_end_that_the_database_says_nothing_of_is_not_kept_for_ever(run: Run) -> None:
    run.store.outcomes = lambda _batch: {}
    run.flusher.put(end(1))
    async with run.running():
        await run.until(lambda: run.settled == [1])


async def test_what_was_in_flight_when_it_was_stopped_is_still_there_for_the_drain(run: Run) -> None:
    run.store.failures = [DatabaseUnreachable("away")] * 3
    for fence in range(3):
        run.flusher.put(end(fence))
    async with run.running():
        await run.until(lambda: len(run.store.failures) < 3)
    assert run.flusher.unsettled == 3

    run.store.failures = []
    assert await run.flusher.drain(20) == 0

    assert run.settled == [0, 1, 2]


async def test_at_a_stop_a_flush_that_hangs_is_cut_off_also_the_one_under_way(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(completer_module, "HURRIED_S", 0.02)
    run.store.gate = anyio.Event()  # silent
    run.flusher.put(end(1))
    async with run.running():
        await run.until(lambda: run.flusher.unsettled == 1 and not run.flusher._waiting)
        run.flusher.hurry()

    with anyio.fail_after(20):
        assert await run.flusher.drain(0.1) == 1
    run.store.gate.set()
    assert await run.flusher.drain(20) == 0
    assert run.settled == [1]


async def test_a_drain_gives_up_in_time_and_says_how_many_are_left(run: Run) -> None:
    run.store.failures = [DatabaseUnreachable("away")] * 1000
    run.flusher.put(end(1))

    assert await run.flusher.drain(0.05) == 1


async def test_a_drain_waits_for_busy_rows(run: Run) -> None:
    answers = iter(["busy", "busy", "completed"])
    run.store.outcomes = lambda batch: dict.fromkeys(fences(batch), next(answers))
    run.flusher.put(end(1))

    assert await run.flusher.drain(20) == 0
    assert run.settled == [1]


def refused(fence: int, model: str = "m", refusal: ThrottleKind | None = "quota") -> Settlement:
    retry = Retry("rate_limited", "429: my secret", 0.1, counts=False, refusal=refusal, pause_s=3.0)
    settlement = end(fence)
    return replace(settlement, grant=replace(settlement.grant, model=model), decision=retry)


async def test_a_model_that_refuses_many_calls_at_once_is_one_line(run: Run) -> None:
    run.store.outcomes = lambda batch: dict.fromkeys(fences(batch), "refused")
    for fence in range(50):
        run.flusher.put(refused(fence, "ab"[fence % 2]))
    run.flusher.put(refused(50, "broken", refusal=None))
    with capture_logs() as lines:
        async with run.running():
            await run.until(lambda: len(run.settled) == 51)

    closed = [line for line in lines if line["event"] == Event.MODEL_COOLDOWN]
    assert [(line["model"], line["pause_s"], line["because"]) for line in closed] == [
        ("a", 3.0, "rate_limited"),
        ("b", 3.0, "rate_limited"),
    ]
    assert {line["log_level"] for line in closed} == {"warning"}
    assert sum(line["event"] == Event.ATTEMPT_ENDED for line in lines) == 51
    assert "my secret" not in str(lines)
