"""Writes ends of attempts to the database, many in one statement, and never loses one.

A flush starts 20 ms after its first end (sooner after short calls), or at 200; while one is under way the next
collects. If the database is away the ends wait here, after a while with their answers in the spill (spill/writer.py),
and go out when it is back: first a heartbeat, then what waited, and only then does this worker sweep again (design I9).
"""

from __future__ import annotations

import asyncio
import math
import random
import time
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from pathlib import Path

import anyio
import anyio.lowlevel
from anyio import to_thread

from llmqueue.db.encoding import in_ascii
from llmqueue.db.store import Store
from llmqueue.errors import DatabaseSilent, DatabaseUnreachable, SqlError
from llmqueue.logs import Event, logger
from llmqueue.spill.codec import Damaged
from llmqueue.spill.file import Left, Place, Spill
from llmqueue.types import Bury, Complete, Decision, Retry, Settlement
from llmqueue.worker.pending import PendingSettlement, log_attempt, pending

LINGER_S = 0.02
MAX_FLUSH = 200
TOLD_AT_ONCE = 25
# A flush carries answers: one of 10 MB must not make a statement of 2 GB.
MAX_FLUSH_CHARS = 8_000_000
RETRY_S = (0.2, 1.0)
# Somebody's open transaction holds the task's row: asked again at this pace, which costs nobody anything.
BUSY_S = 0.5
# A disk that has not given an answer back for that long has lost it.
UNREADABLE_FOR_S = 60.0
# At a stop: whoever stops us does not wait for all the deadlines that a silent database costs.
HURRIED_S = 3.0
# In a row; then try_all() has something better to do.
FAILURES = 10
# All calls in flight may be refused at once, and each would say it.
CLOSING_SAID_S = 10.0


class Flusher:
    """`on_settled(settlement)` is called once the end of an attempt is safe in the database.

    `spill` is where ends may wait meanwhile; they belong to its worker. `reconnect()` says to the database that we
    live, before the first flush after an outage.
    """

    def __init__(
        self,
        store: Store,
        on_settled: Callable[[Settlement], None],
        spill: Spill,
        reconnect: Callable[[], Awaitable[None]],
    ) -> None:
        self._store = store
        self._on_settled = on_settled
        self._spill = spill
        self._reconnect = reconnect
        self._waiting: deque[PendingSettlement] = deque()
        self._held: deque[PendingSettlement] = deque()
        self._flushing: list[PendingSettlement] = []
        self._held_until = 0.0
        self._flush_s = math.inf
        self._flush_scope: anyio.CancelScope | None = None
        self._flush_size = MAX_FLUSH
        self._pause_s = RETRY_S[0]
        self._arrived = anyio.Event()
        self._closing_said_at: dict[str, float] = {}
        self._is_unreadable_said = False
        self._is_unfinished_said = False
        self._failures = 0
        self._bug: Exception | None = None  # raised while outcomes were told
        self.is_behind = False
        """The database was away, and not all that waited for it has been sent since."""

    def put(self, settlement: Settlement) -> None:
        self._waiting.append(pending(settlement))
        self._arrived.set()

    def put_left(self, left: Left) -> None:
        """Takes over an end that lies in the spill."""
        end = PendingSettlement(left.settlement, left.place.length, place=left.place)
        if left.ended_at is not None:
            end.since -= max(0.0, time.time() - left.ended_at)
        self._waiting.append(end)
        self.is_behind = True

    @property
    def unsettled(self) -> int:
        return len(self._waiting) + len(self._held) + len(self._flushing)

    def in_memory(self) -> list[PendingSettlement]:
        """Returns the ends whose answers are in memory only."""
        return [end for ends in (self._flushing, self._held, self._waiting) for end in ends if end.is_in_memory]

    def spilled(self, end: PendingSettlement, place: Place) -> None:
        """Lets go of an answer that is in the spill; the database may have taken it meanwhile."""
        if end.is_settled:
            self._spill.settled(is_known=True)
        else:
            end.place = place
            if not end.is_buried:
                end.settlement = end.settlement.without_answer()

    async def run(self) -> None:
        """Flushes for ever."""
        while True:
            # New ends never wait for held ones: those come along when their pause is over.
            with anyio.move_on_after(BUSY_S if self._held else None):
                await self._arrived.wait()
            if time.monotonic() >= self._held_until:
                self._release_held()
            if len(self._waiting) < MAX_FLUSH:
                await anyio.sleep(self._linger_s())
            self._arrived = anyio.Event()
            while self._waiting:
                await anyio.lowlevel.checkpoint_if_cancelled()  # flushes are shielded
                await self._flush()
                if self._bug is not None:
                    raise self._bug

    def _linger_s(self) -> float:
        """No more than a tenth of what the first call took: its model may wait for it, by max_concurrency."""
        latency_s = self._waiting[0].settlement.latency_s if self._waiting else None
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
                while self._waiting:
                    await self._flush()
                if self._held:
                    await anyio.sleep(BUSY_S / 5)
        return self.unsettled

    async def try_all(self) -> int:
        """Flushes everything once, waiting for the database if it is away.

        Returns how many ends are left: busy ones, or all when the database keeps refusing them.
        """
        self._release_held()
        self._failures = 0
        while self._waiting and self._failures < FAILURES:
            await self._flush()
        return self.unsettled

    async def tidy(self) -> None:
        """Removes the spill once nothing waits in it."""
        if not self._spill.is_done:
            return
        try:
            kept = await to_thread.run_sync(self._spill.finish)
        except OSError as error:
            # Its ends are settled: whoever inherits it finds nothing to do. Tried again with each flush.
            if not self._is_unfinished_said:
                self._is_unfinished_said = True
                effect = "a file in which all is settled cannot be removed"
                logger().error(
                    Event.SPILL_FAILED, file=str(self._spill.path), error=error.strerror or str(error), effect=effect
                )
            return
        self._is_unfinished_said = False
        self._say_settled(kept)

    def let_go(self) -> None:
        """Closes the spill, and with it its lock."""
        self._spill.close()

    def _say_settled(self, kept: Path | None) -> None:
        if kept is None:
            logger().info(Event.SPILL_SETTLED, file=str(self._spill.path))
        else:
            remedy = "the database does not know an attempt of it, or a line is damaged: look for answers you miss"
            logger().warning(Event.SPILL_LEFT, file=str(kept), remedy=remedy)

    def _release_held(self) -> None:
        self._waiting.extend(self._held)
        self._held.clear()
        if self._waiting:
            self._arrived.set()

    async def _flush(self) -> None:
        self._flushing = self._take()
        sent: list[Settlement] = []
        outcomes: dict[int, str] = {}
        try:
            # Shielded: a flush cut off half-way would be sent again, which is harmless but slow at a stop.
            deadline = anyio.current_time() + self._flush_s
            with anyio.CancelScope(deadline=deadline, shield=True) as self._flush_scope:
                if self.is_behind:
                    await self._reconnect()
                sent = await self._load()
                if not sent:
                    return
                outcomes = await self._store.settle(sent, self._spill.worker)
            if self._flush_scope.cancelled_caught:
                raise DatabaseSilent("the database has not answered, and this worker is about to end")
        except DatabaseUnreachable as error:
            self._store.outage.began(error)
            self.is_behind = True
            if sent and isinstance(error, DatabaseSilent):
                # Sent again at the same size, a flush that is too much for the deadline would be sent for ever.
                self._flush_size = max(1, len(sent) // 2)
            self._put_back()
            await self._pause()
            return
        except SqlError as error:
            self._failures += 1
            logger().error(Event.SETTLE_FAILED, error_class=error.sqlstate, attempts=len(self._flushing))
            await self._put_off(error, sent)
            return
        except BaseException:
            self._put_back()
            raise
        self._store.outage.ended()
        self._failures = 0
        self._pause_s = RETRY_S[0]
        self._flush_size = min(MAX_FLUSH, 2 * self._flush_size)
        self._apply(outcomes)
        self.is_behind = self.is_behind and bool(self._waiting)
        await self.tidy()

    async def _load(self) -> list[Settlement]:
        """Returns what is to be sent, with the answers that lie in the spill and what is left of pauses.

        An end whose answer the disk does not give back now is held, as one is whose row is busy.
        """
        batch = self._flushing
        if all(end.place is None for end in batch):
            read = [(end, end.settlement) for end in batch]
        else:
            found = await to_thread.run_sync(lambda: [self._read(end) for end in batch])
            read = [(end, settlement) for end, settlement in zip(batch, found, strict=True) if settlement is not None]
            for end, settlement in zip(batch, found, strict=True):
                if settlement is None:
                    self._hold(end)
        self._flushing = [end for end, _ in read]
        now = time.monotonic()
        return [settlement.after(now - end.since) for end, settlement in read]

    def _read(self, end: PendingSettlement) -> Settlement | None:
        """Returns None when the disk fails. Of an answer that is lost nothing is left to send: the attempt failed."""
        if end.place is None or end.is_buried or not isinstance(end.settlement.decision, Complete | Bury):
            return end.settlement  # only answers were let go of
        try:
            decision = self._spill.read(end.place).decision
        except OSError as error:
            if not self._is_lost(end, error):
                return None
        except Damaged:
            pass
        else:
            end.unread_since = None
            return replace(end.settlement, decision=decision)
        self._spill.keep()
        lost = Retry("spill_unreadable", "the answer cannot be read from the spill file", 0.0, counts=True)
        return replace(end.settlement, decision=lost)

    def _is_lost(self, end: PendingSettlement, error: OSError) -> bool:
        now = time.monotonic()
        if end.unread_since is None:
            end.unread_since = now
        if not self._is_unreadable_said:
            self._is_unreadable_said = True
            effect = f"tried for {UNREADABLE_FOR_S:.0f} s, then the attempt has failed and the file is kept"
            logger().error(
                Event.SPILL_FAILED, file=str(self._spill.path), error=error.strerror or str(error), effect=effect
            )
        return now - end.unread_since > UNREADABLE_FOR_S

    def _put_back(self) -> None:
        self._waiting.extendleft(reversed(self._flushing))
        self._flushing = []

    async def _put_off(self, error: SqlError, sent: list[Settlement]) -> None:
        """Halves a flush that holds a value which cannot be stored, down to the end that is at fault.

        That one will not get better: it is buried with words that can be written. Anything else (no right, no
        function) may be mended and is waited for, together with what arrives meanwhile: if others go through where it
        fails, settle() knows that the row is at fault (docs/decisions.md, 22).
        """
        is_about_sent = is_about_data(error) and bool(sent)
        if is_about_sent and len(sent) == 1:
            self._bury(self._flushing[0], sent[0].decision, error)
        elif is_about_sent:
            self._flush_size = len(sent) // 2
        self._put_back()
        if not is_about_sent:
            await self._pause()

    def _bury(self, end: PendingSettlement, sent: Decision, error: SqlError) -> None:
        """Leaves less to be written than what was `sent`: the answer in ASCII, then none, then nothing."""
        if end.is_buried and isinstance(sent, Bury) and sent.answer is None:  # its key is not of this table's type
            self._flushing = []
            self._mark_settled(end, "unknown")
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

    async def _pause(self) -> None:
        await anyio.sleep(random.uniform(self._pause_s / 2, self._pause_s))
        self._pause_s = min(2 * self._pause_s, RETRY_S[1])

    def _take(self) -> list[PendingSettlement]:
        batch: list[PendingSettlement] = []
        chars = 0
        while self._waiting and len(batch) < self._flush_size and chars < MAX_FLUSH_CHARS:
            end = self._waiting.popleft()
            batch.append(end)
            chars += end.chars
        return batch

    def _apply(self, outcomes: dict[int, str]) -> None:
        """Marks at once what the database has dealt with, and holds what is busy; telling has time."""
        batch, self._flushing = self._flushing, []
        settled: list[tuple[PendingSettlement, str]] = []
        for end in batch:
            outcome = outcomes.get(end.settlement.grant.task.fence, "unknown")
            if outcome == "busy":
                self._hold(end)
            else:
                self._mark_settled(end, outcome)
                settled.append((end, outcome))
        if self._waiting:
            asyncio.get_running_loop().call_soon(self._tell_meanwhile, settled)
        else:
            self._tell(settled)

    def _mark_settled(self, end: PendingSettlement, outcome: str) -> None:
        end.is_settled = True
        if end.place is not None:
            self._spill.settled(is_known=outcome != "unknown")

    def _tell_meanwhile(self, settled: Sequence[tuple[PendingSettlement, str]]) -> None:
        """Tells them while the database works on the next flush, a few at a time: a claim may be answered meanwhile."""
        if len(settled) > TOLD_AT_ONCE:
            asyncio.get_running_loop().call_soon(self._tell_meanwhile, settled[TOLD_AT_ONCE:])
        try:
            self._tell(settled[:TOLD_AT_ONCE])
        except Exception as error:  # noqa: BLE001 - raised by run(), which ends the worker: slots would stay taken for ever
            self._bug = error

    def _tell(self, settled: Sequence[tuple[PendingSettlement, str]]) -> None:
        for end, outcome in settled:
            log_attempt(end.settlement, outcome)
            self._log_closing(end.settlement)
            self._on_settled(end.settlement)

    def _hold(self, end: PendingSettlement) -> None:
        if not self._held:
            self._held_until = time.monotonic() + BUSY_S
        self._held.append(end)

    def _log_closing(self, settlement: Settlement) -> None:
        """One line for all the calls that a model refuses at about the same time."""
        decision, model = settlement.decision, settlement.grant.model
        if not isinstance(decision, Retry) or decision.refusal is None:
            return
        now = time.monotonic()
        if now - self._closing_said_at.get(model, -math.inf) < CLOSING_SAID_S:
            return
        self._closing_said_at[model] = now
        logger().warning(Event.MODEL_COOLDOWN, model=model, pause_s=decision.pause_s, because=decision.error_class)


def is_about_data(error: SqlError) -> bool:
    """Tells a value that cannot be stored (data exception, program limit exceeded) from trouble that may pass."""
    return error.sqlstate[:2] in {"22", "54"}
