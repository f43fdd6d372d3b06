"""SpillWriter and SpillRecovery: who writes answers down, who settles them, and that none is dropped."""

from __future__ import annotations

import errno
import os
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import cast
from uuid import UUID, uuid4

import anyio
import pytest
from structlog.testing import capture_logs

from llmqueue.db.listen import WakeSignal
from llmqueue.db.outage import Outage
from llmqueue.db.store import Store
from llmqueue.errors import DatabaseUnreachable, SqlError
from llmqueue.logs import Event
from llmqueue.spill import answers as answers_module
from llmqueue.spill import writer as writer_module
from llmqueue.spill.answers import SpilledAnswers
from llmqueue.spill.codec import encode
from llmqueue.spill.file import Database, Spill
from llmqueue.spill.pending import PendingSettlements
from llmqueue.spill.writer import SpillWriter
from llmqueue.types import Bury, Complete, Grant, Retry, Settlement, Task, Usage
from llmqueue.worker import flusher as flusher_module
from llmqueue.worker import spill_recovery as recovery_module
from llmqueue.worker.batching import Batching
from llmqueue.worker.flusher import Flusher
from llmqueue.worker.heartbeat import Heartbeat
from llmqueue.worker.in_flight import InFlight
from llmqueue.worker.planner import Planner
from llmqueue.worker.spill_recovery import SpillRecovery

pytestmark = pytest.mark.anyio
HERE = Database("1/1", "here")


def end(fence: int, answer: object = "42") -> Settlement:
    return Settlement(
        Grant("m", Task(fence, fence, 1, 5, 0, "why?", None), 0.0, 1.0, 60.0), Complete(answer, Usage()), 0.0, 1.0
    )


class FakeDatabase:
    """A store and a heartbeat: `steps` are the calls, `failure(batch)` what it raises, `outcomes` the replies."""

    def __init__(self) -> None:
        self.outage = Outage()
        self.is_away = False
        self.steps: list[str] = []
        self.settled: dict[int, tuple[UUID, Settlement]] = {}
        self.failure: Callable[[Sequence[Settlement]], Exception | None] = lambda _: None
        self.outcomes: dict[int, str] = {}
        self.may_sweep = False

    def spills_are_sent(self) -> None:
        self.may_sweep = True

    async def beat(self) -> None:
        if self.is_away:
            raise DatabaseUnreachable("away")
        self.steps.append("heartbeat")

    async def settle(self, batch: Sequence[Settlement], worker: UUID) -> dict[int, str]:
        if self.is_away:
            raise DatabaseUnreachable("away")
        if error := self.failure(batch):
            raise error
        fences = [settlement.grant.task.fence for settlement in batch]
        self.steps.append(f"settle {fences}")
        outcomes = {fence: self.outcomes.get(fence, "completed") for fence in fences}
        done = {fence for fence, outcome in outcomes.items() if outcome != "busy"}
        self.settled |= {s.grant.task.fence: (worker, s) for s in batch if s.grant.task.fence in done}
        return outcomes

    def answers(self) -> dict[int, object]:
        return {fence: getattr(s.decision, "answer", None) for fence, (_, s) in sorted(self.settled.items())}


def in_flight() -> InFlight:
    return InFlight(10, Planner(random.Random(1)), Batching(can_batch=False), WakeSignal())


class Worker:
    """A flusher and its spill_writer in `folder`; `freed` are the fences whose slots are free again."""

    def __init__(self, folder: Path, *, memory_chars: int = 1000, max_bytes: int = 1 << 30) -> None:
        self.database = FakeDatabase()
        self.freed: list[int] = []
        self.id = uuid4()
        self.spill = Spill(folder, self.id, HERE, max_bytes)
        self.pending = PendingSettlements()
        self.answers = SpilledAnswers(self.spill)
        ours = in_flight()
        ours.settled = lambda settlement, _: self.freed.append(settlement.grant.task.fence)  # type: ignore[method-assign,assignment]
        store, heartbeat = cast(Store, self.database), cast(Heartbeat, self.database)
        self.flusher = Flusher(store, heartbeat, ours, self.pending, self.answers)
        self.spill_writer = SpillWriter(self.pending, self.spill, self.answers, after_s=0.0, memory_chars=memory_chars)

    @property
    def in_memory(self) -> int:
        return len(self.pending.in_memory())


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flusher_module, "LINGER_S", 0.001)
    monkeypatch.setattr(writer_module, "LOOK_S", 0.001)
    monkeypatch.setattr(writer_module, "TRY_AGAIN_S", 0.0)
    monkeypatch.setattr(flusher_module, "RETRY_S", (0.001, 0.002))
    monkeypatch.setattr(flusher_module, "BUSY_S", 0.01)


@pytest.fixture
def worker(tmp_path: Path, anyio_backend: str) -> Worker:
    return Worker(tmp_path / "spill")


class FullDisk:
    """os.pwrite raises while `is_full`."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.is_full = True
        self._pwrite = os.pwrite
        monkeypatch.setattr(os, "pwrite", self.pwrite)

    def pwrite(self, fd: int, data: bytes, offset: int) -> int:
        if self.is_full:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return self._pwrite(fd, data, offset)


async def until(is_so: Callable[[], object]) -> None:
    with anyio.fail_after(30):
        while not is_so():
            await anyio.sleep(0.002)


async def test_answers_leave_memory_for_the_file_and_reach_the_database_whole(worker: Worker) -> None:
    worker.database.is_away = True
    answers = {1: "a" * 500, 2: {"json": [1, "\x00"]}, 3: ""}
    async with anyio.create_task_group() as loops:
        loops.start_soon(worker.flusher.run)
        loops.start_soon(worker.spill_writer.run)
        for fence, answer in answers.items():
            worker.flusher.put(end(fence, answer))
        await until(lambda: worker.spill.waiting == 3 and worker.in_memory == 0)  # a thread writes them
        assert (worker.freed, worker.flusher.unsettled) == ([], 3)

        worker.database.is_away = False
        await until(lambda: worker.freed == [1, 2, 3])
        await until(lambda: not worker.spill.path.exists())
        loops.cancel_scope.cancel()

    assert worker.database.answers() == answers
    assert worker.flusher.unsettled == 0


async def test_an_answer_that_the_database_takes_at_once_is_never_written_to_disk(tmp_path: Path) -> None:
    worker = Worker(tmp_path)
    worker.spill_writer = SpillWriter(worker.pending, worker.spill, worker.answers)
    worker.flusher.put(end(1))

    await worker.spill_writer.look()

    assert await worker.flusher.try_all() == 0
    assert list(tmp_path.iterdir()) == []


async def test_from_a_stop_on_an_answer_does_not_wait_for_long_in_memory_alone(tmp_path: Path) -> None:
    worker = Worker(tmp_path)
    worker.spill_writer = SpillWriter(worker.pending, worker.spill, worker.answers)
    worker.flusher.put(end(1))
    wait(worker, 1.0)
    await worker.spill_writer.look()
    assert worker.in_memory == 1

    worker.spill_writer.hurry()
    await worker.spill_writer.look()

    assert (worker.in_memory, worker.spill.waiting) == (0, 1)


async def test_the_heartbeat_comes_before_what_waited_and_only_once(worker: Worker) -> None:
    worker.database.is_away = True
    worker.flusher.put(end(1))
    async with anyio.create_task_group() as loops:
        loops.start_soon(worker.flusher.run)
        await until(lambda: worker.pending.is_behind)
        worker.flusher.put(end(2))
        worker.database.is_away = False
        await until(lambda: worker.freed == [1, 2])
        assert not worker.pending.is_behind
        worker.flusher.put(end(3))
        await until(lambda: worker.freed == [1, 2, 3])
        loops.cancel_scope.cancel()

    assert worker.database.steps[0] == "heartbeat"
    assert worker.database.steps.count("heartbeat") == 1


async def test_a_full_disk_and_a_full_memory_stop_claims_and_lose_nothing(
    worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = FullDisk(monkeypatch)
    with capture_logs() as lines:
        worker.flusher.put(end(1, "x" * 900))
        for _ in range(3):
            await worker.spill_writer.spill()
            await worker.spill_writer.look()
        assert not worker.pending.is_full, "memory has room"
        worker.flusher.put(end(2, "x" * 900))
        await worker.spill_writer.look()
        assert worker.pending.is_full
        worker.flusher.put(end(3, "in flight when it was full"))
        await worker.spill_writer.look()

        disk.is_full = False
        await worker.spill_writer.look()

    assert not worker.pending.is_full
    assert (worker.in_memory, worker.spill.waiting) == (0, 3)
    said = [line["event"] for line in lines]
    assert [said.count(event) for event in (Event.SPILL_FAILED, Event.SPILL_FULL, Event.SPILL_WRITTEN)] == [1, 1, 1]
    assert said.count(Event.SPILL_HAS_ROOM) == 2
    assert await worker.flusher.try_all() == 0
    assert worker.database.answers() == {1: "x" * 900, 2: "x" * 900, 3: "in flight when it was full"}


async def test_the_bound_of_the_file_is_the_bound_of_what_is_claimed(tmp_path: Path) -> None:
    worker = Worker(tmp_path, memory_chars=1000, max_bytes=3000)
    worker.flusher.put(end(1, "x" * 2000))
    await worker.spill_writer.spill()
    worker.flusher.put(end(2, "x" * 2000))

    await worker.spill_writer.look()

    assert (worker.spill.waiting, worker.in_memory, worker.pending.is_full) == (1, 1, True)
    assert await worker.flusher.try_all() == 0
    await worker.spill_writer.look()
    assert not worker.pending.is_full
    assert worker.database.answers() == {1: "x" * 2000, 2: "x" * 2000}


async def test_an_end_settled_while_it_was_written_does_not_keep_the_file(
    worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker.flusher.put(end(1))
    append = worker.spill.append

    def settled_meanwhile(records: Sequence[bytes]) -> list[object]:
        places = append(records)
        anyio.from_thread.run(worker.flusher.try_all)
        return cast("list[object]", places)

    monkeypatch.setattr(worker.spill, "append", settled_meanwhile)
    await worker.spill_writer.spill()

    assert worker.freed == [1]
    assert not worker.spill.path.exists()


@pytest.mark.parametrize("is_spilled", [False, True])
async def test_an_answer_that_the_database_cannot_take_is_buried_alone_and_kept_in_ascii(
    worker: Worker, *, is_spilled: bool
) -> None:
    def poison(batch: Sequence[Settlement]) -> Exception | None:
        is_bad = any(isinstance(s.decision, Complete) and s.decision.answer == "bäd" for s in batch)
        return SqlError("cannot be stored", "22P05") if is_bad else None

    worker.database.failure = poison
    for fence in range(5):
        worker.flusher.put(end(fence, "bäd" if fence == 3 else "good"))
    if is_spilled:
        await worker.spill_writer.spill()
        assert worker.in_memory == 0

    assert await worker.flusher.try_all() == 0

    assert worker.database.answers() == {0: "good", 1: "good", 2: "good", 3: '"b\\u00e4d"', 4: "good"}
    assert isinstance(worker.database.settled[3][1].decision, Bury)
    assert not worker.spill.path.exists()


async def test_a_buried_answer_that_has_to_wait_in_the_file_is_not_lost_there(worker: Worker) -> None:
    def poison(batch: Sequence[Settlement]) -> Exception | None:
        worker.database.is_away = isinstance(batch[0].decision, Complete)
        return SqlError("cannot be stored", "22P05") if worker.database.is_away else None

    worker.database.failure = poison
    worker.flusher.put(end(1, "precious"))
    async with anyio.create_task_group() as loops:
        loops.start_soon(worker.flusher.run)
        await until(lambda: worker.pending.is_behind)
        await worker.spill_writer.spill()
        worker.database.is_away = False
        await until(lambda: worker.freed == [1])
        loops.cancel_scope.cancel()

    assert worker.database.answers() == {1: '"precious"'}


async def test_what_the_database_takes_in_no_form_is_tried_with_ever_less_and_keeps_the_file(worker: Worker) -> None:
    sent: list[object] = []

    def poison(batch: Sequence[Settlement]) -> Exception | None:
        sent.append(getattr(batch[0].decision, "answer", None))
        return SqlError("too long", "54000")

    worker.database.failure = poison
    worker.flusher.put(end(1, "precious"))
    await worker.spill_writer.spill()

    assert await worker.flusher.try_all() == 0
    await worker.answers.tidy()

    assert sent == ["precious", '"precious"', None]
    assert worker.freed == [1]
    assert [path.suffix for path in worker.spill.path.parent.iterdir()] == [".kept"]


class BrokenDisk:
    """os.pread raises while `is_broken`; `asked` counts how often it did."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.is_broken = True
        self.asked = 0
        self._pread = os.pread
        monkeypatch.setattr(os, "pread", self.pread)

    def pread(self, fd: int, length: int, offset: int) -> bytes:
        if self.is_broken:
            self.asked += 1
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return self._pread(fd, length, offset)


async def test_an_answer_that_the_disk_does_not_give_back_now_is_asked_for_again_and_holds_up_no_other(
    worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker.flusher.put(end(1, "precious"))
    await worker.spill_writer.spill()
    worker.flusher.put(end(2))
    disk = BrokenDisk(monkeypatch)

    with capture_logs() as lines:
        async with anyio.create_task_group() as loops:
            loops.start_soon(worker.flusher.run)
            await until(lambda: disk.asked >= 3)
            assert worker.freed == [2]
            disk.is_broken = False
            await until(lambda: worker.freed == [2, 1])
            await until(lambda: not worker.spill.path.exists())
            loops.cancel_scope.cancel()

    assert worker.database.answers() == {1: "precious", 2: "42"}
    assert [line["error"] for line in lines if line["event"] == Event.SPILL_FAILED] == ["Input/output error"]
    assert not worker.spill.path.exists()


async def test_an_answer_that_the_disk_never_gives_back_is_a_failed_attempt_and_keeps_the_file(
    worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(answers_module, "UNREADABLE_FOR_S", 0.02)
    worker.flusher.put(end(1, "precious"))
    await worker.spill_writer.spill()
    BrokenDisk(monkeypatch)

    assert await worker.flusher.drain(20) == 0

    lost = worker.database.settled[1][1].decision
    assert isinstance(lost, Retry)
    assert lost.error_class == "spill_unreadable"
    assert [path.suffix for path in worker.spill.path.parent.iterdir()] == [".kept"]


async def test_an_answer_that_has_changed_on_the_disk_is_a_failed_attempt_and_keeps_the_file(worker: Worker) -> None:
    worker.flusher.put(end(1, "precious"))
    worker.flusher.put(end(2))
    await worker.spill_writer.spill()
    content = worker.spill.path.read_bytes()
    worker.spill.path.write_bytes(content.replace(b"precious", b"Precious"))

    assert await worker.flusher.try_all() == 0

    [lost] = [s.decision for _, s in worker.database.settled.values() if isinstance(s.decision, Retry)]
    assert (lost.error_class, lost.counts) == ("spill_unreadable", True)
    assert worker.freed == [1, 2]
    assert [path.suffix for path in worker.spill.path.parent.iterdir()] == [".kept"]


async def test_only_an_answer_is_read_from_the_disk_again(worker: Worker) -> None:
    retry = Retry("http_502", "Bad Gateway", 0.0, counts=False, may_be_backends=True)
    worker.flusher.put(replace(end(1), decision=retry))
    await worker.spill_writer.spill()
    worker.spill.path.write_bytes(b"\x00" * worker.spill.path.stat().st_size)

    assert await worker.flusher.try_all() == 0

    assert worker.database.settled[1][1].decision == retry


def refused(fence: int, *, delay_s: float = 0.0, pause_s: float | None = None) -> Settlement:
    retry = Retry("rate_limited", "429", delay_s, counts=False, refusal="quota", pause_s=pause_s)
    return replace(end(fence), decision=retry)


def wait(worker: Worker, seconds: float) -> None:
    """Makes what `worker` has in memory that much older."""
    for waiting in worker.pending.in_memory():
        waiting.since -= seconds


def pauses(database: FakeDatabase) -> dict[int, tuple[float, float | None]]:
    """What is left of delay_s and pause_s, to the second."""
    decisions = {fence: s.decision for fence, (_, s) in database.settled.items()}
    return {
        fence: (round(d.delay_s), None if d.pause_s is None else round(d.pause_s))
        for fence, d in decisions.items()
        if isinstance(d, Retry)
    }


@pytest.mark.parametrize("is_spilled", [False, True])
async def test_a_refusal_that_waited_for_the_database_closes_the_model_for_what_is_left(
    worker: Worker, *, is_spilled: bool
) -> None:
    worker.flusher.put(refused(1, delay_s=30.0, pause_s=100.0))
    worker.flusher.put(refused(2, delay_s=90.0))
    wait(worker, 60.0)
    if is_spilled:
        await worker.spill_writer.spill()
    worker.flusher.put(refused(3, delay_s=30.0, pause_s=100.0))

    assert await worker.flusher.try_all() == 0

    assert pauses(worker.database) == {1: (0, 40), 2: (30, None), 3: (30, 100)}


async def test_a_folder_that_cannot_be_made_is_said_at_the_start(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    worker = Worker(tmp_path / "file" / "spill")
    with capture_logs() as lines:
        async with anyio.create_task_group() as loops:
            loops.start_soon(worker.spill_writer.run)
            await until(lambda: lines)
            loops.cancel_scope.cancel()

    assert lines[0]["event"] == Event.SPILL_FAILED
    assert "LLMQUEUE_HOME" in lines[0]["remedy"]


# --- the recovery -----------------------------------------------------------------------------------------------------


class Estate:
    """A folder with what a former worker left, and a recovery."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.database = FakeDatabase()
        store, heartbeat = cast(Store, self.database), cast(Heartbeat, self.database)
        self.recovery = SpillRecovery(store, heartbeat, in_flight(), folder, HERE, own=folder / "own.jsonl")

    def leave(self, *settlements: Settlement, database: Database = HERE) -> UUID:
        worker = uuid4()
        spill = Spill(self.folder, worker, database)
        spill.append([encode(settlement) for settlement in settlements])
        spill.close()
        return worker

    @property
    def files(self) -> list[str]:
        return sorted(path.name for path in self.folder.iterdir())


@pytest.fixture
def estate(tmp_path: Path, anyio_backend: str) -> Estate:
    return Estate(tmp_path)


async def test_a_recovery_settles_in_the_name_of_who_is_gone_and_removes_the_file(estate: Estate) -> None:
    first = estate.leave(end(1, "one"), end(2, "two"))
    second = estate.leave(end(3, "three"))
    assert not estate.database.may_sweep, "nobody is swept from here before it has looked"

    await estate.recovery.look()

    assert estate.database.answers() == {1: "one", 2: "two", 3: "three"}
    assert [worker for worker, _ in (estate.database.settled[fence] for fence in (1, 2, 3))] == [first, first, second]
    assert estate.database.steps[0] == "heartbeat"
    assert (estate.files, estate.database.may_sweep) == ([], True)


async def test_a_recovery_counts_a_pause_from_its_refusal(estate: Estate) -> None:
    worker = Worker(estate.folder)
    worker.flusher.put(refused(1, delay_s=90.0, pause_s=100.0))
    wait(worker, 60.0)
    await worker.spill_writer.spill()
    worker.spill.close()

    await estate.recovery.look()

    assert pauses(estate.database) == {1: (30, 40)}


async def test_a_recovery_whose_clock_was_set_back_makes_no_pause_longer(
    estate: Estate, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker = Worker(estate.folder)
    worker.flusher.put(refused(1, pause_s=100.0))
    await worker.spill_writer.spill()
    worker.spill.close()
    wall = time.time
    monkeypatch.setattr(time, "time", lambda: wall() - 3600)

    await estate.recovery.look()

    assert pauses(estate.database) == {1: (0, 100)}


async def test_a_recovery_waits_for_a_database_that_is_away_and_sweeps_nobody_meanwhile(estate: Estate) -> None:
    estate.leave(end(1))
    estate.database.is_away = True
    async with anyio.create_task_group() as loops:
        loops.start_soon(estate.recovery.run)
        await until(lambda: estate.recovery._open)
        assert not estate.database.may_sweep
        estate.database.is_away = False
        await until(lambda: estate.database.may_sweep)
        loops.cancel_scope.cancel()

    assert (estate.database.answers(), estate.files) == ({1: "42"}, [])


async def test_a_recovery_keeps_what_a_locked_row_holds_up_and_settles_the_rest(estate: Estate) -> None:
    estate.leave(end(1), end(2))
    estate.database.outcomes = {1: "busy"}

    await estate.recovery.look()

    assert estate.database.answers() == {2: "42"}
    assert (len(estate.files), estate.database.may_sweep) == (1, True)
    estate.database.outcomes = {}
    await estate.recovery.look()
    assert (sorted(estate.database.settled), estate.files) == ([1, 2], [])


async def test_what_is_not_ours_is_said_once_and_left_alone(estate: Estate, monkeypatch: pytest.MonkeyPatch) -> None:
    estate.leave(end(1), database=Database("2/2", "elsewhere"))
    (estate.folder / "strange.jsonl").write_bytes(b"what is this\n")
    (estate.folder / "closed.jsonl").write_bytes(b"x")
    estate.leave(end(2))
    inherit = recovery_module.inherit  # type: ignore[attr-defined]

    def closed(path: Path, database: Database) -> object:
        if path.name == "closed.jsonl":
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        return inherit(path, database)

    monkeypatch.setattr(recovery_module, "inherit", closed)
    with capture_logs() as lines:
        await estate.recovery.look()
        await estate.recovery.look()

    left = [line for line in lines if line["event"] == Event.SPILL_LEFT]
    assert sorted(line["error"] for line in left) == [
        "Permission denied",
        "it belongs to another database (elsewhere)",
        "its first line is not that of a spill file",
    ]
    assert all(line["remedy"] for line in left)
    assert sorted(estate.database.settled) == [2]
    assert len(estate.files) == 3


@pytest.mark.parametrize("sqlstate", ["42501", "22P02"])
async def test_a_file_that_the_database_refuses_holds_up_no_other(estate: Estate, sqlstate: str) -> None:
    estate.leave(end(1))
    estate.leave(end(2))
    refused = SqlError("no", sqlstate)
    estate.database.failure = lambda batch: refused if batch[0].grant.task.fence == 1 else None

    with capture_logs() as lines:
        await estate.recovery.look()

    assert sorted(estate.database.settled) == [2]
    assert estate.database.may_sweep
    [file] = estate.files
    is_kept = sqlstate == "22P02"  # it can never be stored; a right may be granted
    assert file.endswith(".kept" if is_kept else ".jsonl")
    assert any(line["event"] == Event.SPILL_LEFT for line in lines) == is_kept


async def test_an_attempt_that_the_database_does_not_know_costs_no_answer(estate: Estate) -> None:
    estate.leave(end(1, "precious"), end(2))
    estate.database.outcomes = {1: "unknown"}

    await estate.recovery.look()

    [kept] = estate.files
    assert kept.endswith(".kept")
    assert b"precious" in (estate.folder / kept).read_bytes()


async def test_a_settled_file_that_cannot_be_removed_is_said_once_and_settled_once_and_its_lock_is_free(
    estate: Estate, monkeypatch: pytest.MonkeyPatch
) -> None:
    def read_only(*_: object, **__: object) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    estate.leave(end(1))
    with capture_logs() as lines, monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", read_only)
        for _ in range(3):
            await estate.recovery.look()

    assert [line["event"] for line in lines].count(Event.SPILL_FAILED) == 1
    assert estate.database.steps.count("settle [1]") == 1
    [file] = estate.files
    neighbour = recovery_module.inherit(estate.folder / file, HERE)  # type: ignore[attr-defined]
    assert neighbour is not None
    neighbour.spill.close()
