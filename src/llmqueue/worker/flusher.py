"""Writes ends of attempts to the database, many in one statement, and never loses one.

A flush starts 20 ms after its first end (sooner after short calls), or at 200 ends; while one is under way the next
collects. If the database is away the ends wait here, after a while with their answers in the spill (spill/writer.py),
and go out when it is back: first a heartbeat, then what waited, and only then does this worker sweep again (design I9).
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Sequence
from dataclasses import replace

import anyio
import anyio.lowlevel

from llmqueue.db.encoding import in_ascii
from llmqueue.db.outage import Backoff
from llmqueue.db.store import Store
from llmqueue.errors import DatabaseSilent, DatabaseUnreachable, SqlError
from llmqueue.logs import Event, logger
from llmqueue.spill.answers import SpilledAnswers
from llmqueue.spill.pending import PendingSettlement, PendingSettlements
from llmqueue.types import Bury, Complete, Decision, Settlement
from llmqueue.worker.attempt_log import AttemptLog
from llmqueue.worker.heartbeat import Heartbeat
from llmqueue.worker.in_flight import InFlight

LINGER_S = 0.02
MAX_FLUSH = 200
TOLD_AT_ONCE = 25
# A flush carries answers: one of 10 MB must not make a statement of 2 GB.
MAX_FLUSH_CHARS = 8_000_000
RETRY_S = (0.2, 1.0)
# Somebody's open transaction holds the task's row: asked again at this pace, which costs nobody anything.
BUSY_S = 0.5
# At a stop: whoever stops us does not wait for all the deadlines that a silent database costs.
HURRIED_S = 3.0
# In a row; then try_all() has something better to do.
FAILURES = 10


class Flusher:
    """Writes `pending`, which it shares with the spill's writer; `answers` are those of them that lie in the spill.

    The ends belong to the worker of that spill. A heartbeat goes before the first flush after an outage.
    """

    def __init__(
        self,
        store: Store,
        heartbeat: Heartbeat,
        in_flight: InFlight,
        pending: PendingSettlements,
        answers: SpilledAnswers,
    ) -> None:
        self._store = store
        self._heartbeat = heartbeat
        self._in_flight = in_flight
        self._pending = pending
        self._answers = answers
        self._log = AttemptLog()
        self._flush_s = math.inf
        self._flush_scope: anyio.CancelScope | None = None
        self._flush_size = MAX_FLUSH
        self._backoff = Backoff(*RETRY_S)
        self._arrived = anyio.Event()
        self._failures = 0
        self._bug: Exception | None = None  # raised while ends were told to others

    def put(self, settlement: Settlement) -> None:
        """Takes the end of an attempt; its slot is free from now on."""
        self._pending.put(settlement)
        self._arrived.set()
        self._in_flight.ended(settlement)

    @property
    def unsettled(self) -> int:
        return len(self._pending)

    async def run(self) -> None:
        """Flushes for ever."""
        while True:
            # New ends never wait for held ones: those come along when their pause is over.
            with anyio.move_on_after(BUSY_S if self._pending.has_held else None):
                await self._arrived.wait()
            if self._pending.held_for(time.monotonic()) >= BUSY_S:
                self._release_held()
            if len(self._pending.waiting) < MAX_FLUSH:
                await anyio.sleep(self._linger_s())
            self._arrived = anyio.Event()
            while self._pending.waiting:
                await anyio.lowlevel.checkpoint_if_cancelled()  # flushes are shielded
                await self._flush()
                if self._bug is not None:
                    raise self._bug

    def _linger_s(self) -> float:
        """No more than a tenth of what the first call took: its model may wait for it, by max_concurrency."""
        waiting = self._pending.waiting
        latency_s = waiting[0].settlement.latency_s if waiting else None
        return LINGER_S if latency_s is None else min(LINGER_S, latency_s / 10)

    def hurry(self) -> None:
        """No flush takes longer than HURRIED_S from now on, not even the one under way."""
        self._flush_s = HURRIED_S
        if self._flush_scope is not None:
            self._flush_scope.deadline = min(self._flush_scope.deadline, anyio.current_time() + HURRIED_S)

    async def drain(self, timeout_s: float) -> int:
        """Flushes what is left for at most `timeout_s`. Returns how many ends could not be written."""
        with anyio.move_on_after(timeout_s):
            while self.unsettled:
                self._release_held()
                while self._pending.waiting:
                    await self._flush()
                if self._pending.has_held:
                    await anyio.sleep(BUSY_S / 5)
        return self.unsettled

    async def try_all(self) -> int:
        """Flushes everything once, waiting for the database if it is away.

        Returns how many ends are left: busy ones, or all when the database keeps refusing them.
        """
        self._release_held()
        self._failures = 0
        while self._pending.waiting and self._failures < FAILURES:
            await self._flush()
        return self.unsettled

    def _release_held(self) -> None:
        self._pending.release_held()
        if self._pending.waiting:
            self._arrived.set()

    async def _flush(self) -> None:
        self._pending.take(self._flush_size, MAX_FLUSH_CHARS)
        sent: list[Settlement] = []
        outcomes: dict[int, str] = {}
        try:
            # Shielded: a flush that is cut off would be sent again, which is harmless but slow at a stop.
            deadline = anyio.current_time() + self._flush_s
            with anyio.CancelScope(deadline=deadline, shield=True) as self._flush_scope:
                if self._pending.is_behind:
                    await self._heartbeat.beat()
                sent = await self._load()
                if not sent:
                    return
                outcomes = await self._store.settle(sent, self._answers.worker)
            if self._flush_scope.cancelled_caught:
                raise DatabaseSilent("the database has not answered, and this worker is about to end")
        except DatabaseUnreachable as error:
            await self._wait_for_database(error, len(sent))
            return
        except SqlError as error:
            self._failures += 1
            logger().error(Event.SETTLE_FAILED, error_class=error.sqlstate, attempts=len(self._pending.flushing))
            await self._put_off(error, sent)
            return
        except BaseException:
            self._pending.put_back()
            raise
        await self._flushed(outcomes)

    async def _flushed(self, outcomes: dict[int, str]) -> None:
        self._store.outage.ended()
        self._failures = 0
        self._backoff.reset()
        self._flush_size = min(MAX_FLUSH, 2 * self._flush_size)
        self._apply(outcomes)
        self._pending.is_behind = self._pending.is_behind and bool(self._pending.waiting)
        await self._answers.tidy()

    async def _load(self) -> list[Settlement]:
        """Returns what is to be sent, with the answers that lie in the spill and what is left of pauses.

        An end whose answer the disk does not give back now is held, as one is whose row is busy.
        """
        batch = self._pending.flushing
        found = await self._answers.load(batch)
        loaded = [(end, settlement) for end, settlement in zip(batch, found, strict=True) if settlement is not None]
        if len(loaded) < len(batch):
            for end, settlement in zip(batch, found, strict=True):
                if settlement is None:
                    self._pending.hold(end)
        self._pending.flushing = [end for end, _ in loaded]
        now = time.monotonic()
        return [settlement.after(now - end.since) for end, settlement in loaded]

    async def _wait_for_database(self, error: DatabaseUnreachable, sent: int) -> None:
        self._store.outage.began(error)
        self._pending.is_behind = True
        if sent and isinstance(error, DatabaseSilent):
            # Sent again at the same size, a flush that is too much for the deadline would be sent for ever.
            self._flush_size = max(1, sent // 2)
        self._pending.put_back()
        await self._backoff.sleep()

    async def _put_off(self, error: SqlError, sent: list[Settlement]) -> None:
        """Halves a flush that holds a value which cannot be stored, down to the end that is at fault.

        That one will not get better: it is buried with an error that can be written. Anything else (a missing right or
        function) may be mended and is waited for, together with what arrives meanwhile: if others go through where it
        fails, settle() knows that the row is at fault (docs/decisions.md, 22).
        """
        is_about_sent = is_about_data(error) and bool(sent)
        if is_about_sent and len(sent) == 1:
            self._bury(self._pending.flushing[0], sent[0].decision, error)
        elif is_about_sent:
            self._flush_size = len(sent) // 2
        self._pending.put_back()
        if not is_about_sent:
            await self._backoff.sleep()

    def _bury(self, end: PendingSettlement, sent: Decision, error: SqlError) -> None:
        """Leaves less to be written than what was `sent`: the answer in ASCII, then none, then nothing."""
        if end.is_buried and isinstance(sent, Bury) and sent.answer is None:  # its key is not of this table's type
            self._pending.flushing = []
            self._answers.settled(end, is_known=False)
            self._tell([(end, "unknown")])
            return
        kept = None
        if isinstance(sent, Complete):
            kept = in_ascii(sent.answer)
        elif isinstance(sent, Bury) and not end.is_buried:
            kept = sent.answer
        buried = Bury("unstorable_answer", "the database cannot take it: " + str(error), kept)
        end.settlement = replace(end.settlement, decision=buried)
        end.is_buried = True

    def _apply(self, outcomes: dict[int, str]) -> None:
        """Marks at once what the database has dealt with, and holds what is busy; the rest of us can wait for it."""
        batch, self._pending.flushing = self._pending.flushing, []
        settled: list[tuple[PendingSettlement, str]] = []
        for end in batch:
            outcome = outcomes.get(end.settlement.grant.task.fence, "unknown")
            if outcome == "busy":
                self._pending.hold(end)
            else:
                self._answers.settled(end, is_known=outcome != "unknown")
                settled.append((end, outcome))
        if self._pending.waiting:
            asyncio.get_running_loop().call_soon(self._tell_meanwhile, settled)
        else:
            self._tell(settled)

    def _tell_meanwhile(self, settled: Sequence[tuple[PendingSettlement, str]]) -> None:
        """Tells them while the database works on the next flush, a few at a time: a claim may be answered meanwhile."""
        if len(settled) > TOLD_AT_ONCE:
            asyncio.get_running_loop().call_soon(self._tell_meanwhile, settled[TOLD_AT_ONCE:])
        try:
            self._tell(settled[:TOLD_AT_ONCE])
        except Exception as error:  # noqa: BLE001 - raised by run(), which ends the worker: slots would stay taken for ever
            self._bug = error

    def _tell(self, settled: Sequence[tuple[PendingSettlement, str]]) -> None:
        now = time.monotonic()
        for end, outcome in settled:
            self._log.settled(end.settlement, outcome)
            self._in_flight.settled(end.settlement, now)


def is_about_data(error: SqlError) -> bool:
    """Tells a value that cannot be stored (data exception, program limit exceeded) from trouble that may pass."""
    return error.sqlstate[:2] in {"22", "54"}
