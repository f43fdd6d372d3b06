"""Writes ends that have waited for the database for a while to the spill, so that they outlive this process.

An end is on disk about two seconds after it could not be written to the database: from then on it survives kill -9 and
a loss of power. Memory lets go of answers that the spill has. When the spill takes no more, and memory holds more than
its bound too, the worker claims no more; calls that are in flight are still kept, in memory as the last resort.
"""

from __future__ import annotations

import time

import anyio
from anyio import to_thread

from llmqueue.logs import Event, logger
from llmqueue.spill.answers import SpilledAnswers
from llmqueue.spill.codec import encode
from llmqueue.spill.file import Place, Spill, make_folder
from llmqueue.spill.pending import PendingSettlement, PendingSettlements

LOOK_S = 0.25
# The database answers within milliseconds; a restart of it takes longer than this.
AFTER_S = 2.0
# From a stop on: we may be killed at any time, and a file more or less does not matter any more.
HURRIED_AFTER_S = 0.5
MEMORY_CHARS = 64_000_000
# Of one write: a file of a gigabyte is not made in memory first.
BATCH_CHARS = 8_000_000
TRY_AGAIN_S = 2.0


class SpillWriter:
    """Watches `pending`, and says there when it is full; `answers` are those that lie in `spill`."""

    def __init__(
        self,
        pending: PendingSettlements,
        spill: Spill,
        answers: SpilledAnswers,
        *,
        after_s: float = AFTER_S,
        memory_chars: int = MEMORY_CHARS,
    ) -> None:
        self._pending = pending
        self._spill = spill
        self._answers = answers
        self._after_s = after_s
        self._memory_chars = memory_chars
        self._try_again_at = 0.0
        self._has_failed = False

    async def run(self) -> None:
        """Watches for ever."""
        try:
            await to_thread.run_sync(make_folder, self._spill.path.parent)
        except OSError as error:
            self._failed(error)
        while True:
            await anyio.sleep(LOOK_S)
            await self.look()

    def hurry(self) -> None:
        """Lets nothing wait in memory alone for long from now on."""
        self._after_s = min(self._after_s, HURRIED_AFTER_S)

    async def look(self) -> None:
        """Spills what has waited for too long, or is too much."""
        ends = self._pending.in_memory()
        now = time.monotonic()
        is_much = sum(end.chars for end in ends) > self._memory_chars
        is_old = any(now - end.since >= self._after_s for end in ends)
        if (is_much or is_old) and now >= self._try_again_at:
            await self.spill()
        self._look_for_room()

    async def spill(self) -> int:
        """Writes all ends to the spill. Returns how many are still in memory alone after that."""
        for batch in _batches(self._pending.in_memory()):
            try:
                # Shielded: what is on disk must be known to be there.
                with anyio.CancelScope(shield=True):
                    places = await to_thread.run_sync(self._write, batch)
            except OSError as error:
                self._failed(error)
                break
            self._written(batch, places)
        await self._answers.tidy()
        return len(self._pending.in_memory())

    def _write(self, batch: list[PendingSettlement]) -> list[Place | None]:
        records: list[bytes | None] = []
        now, now_monotonic = time.time(), time.monotonic()
        for end in batch:
            try:
                records.append(encode(end.settlement, now - (now_monotonic - end.since)))
            except (ValueError, RecursionError):
                end.is_unspillable = True
                records.append(None)
        places = iter(self._spill.append([record for record in records if record is not None]))
        return [None if record is None else next(places) for record in records]

    def _written(self, batch: list[PendingSettlement], places: list[Place | None]) -> None:
        is_first = self._spill.waiting == sum(place is not None for place in places)
        for end, place in zip(batch, places, strict=True):
            if place is not None:
                self._answers.spilled(end, place)
        if is_first:
            logger().warning(Event.SPILL_WRITTEN, file=str(self._spill.path), ends=len(batch))
        self._has_room()

    def _failed(self, error: OSError) -> None:
        self._try_again_at = time.monotonic() + TRY_AGAIN_S
        if self._has_failed:
            return
        self._has_failed = True
        logger().error(
            Event.SPILL_FAILED,
            file=str(self._spill.path),
            error=error.strerror or str(error),
            effect="finished answers wait in memory alone while the database is away",
            remedy="make room there, or set LLMQUEUE_HOME to a folder that can be written",
        )

    def _has_room(self) -> None:
        if self._has_failed:
            self._has_failed = False
            logger().info(Event.SPILL_HAS_ROOM, file=str(self._spill.path))

    def _look_for_room(self) -> None:
        chars = sum(end.chars for end in self._pending.in_memory())
        was_full, is_full = self._pending.is_full, self._has_failed and chars > self._memory_chars
        self._pending.is_full = is_full
        if is_full and not was_full:
            effect = "claims no more; calls in flight are still kept in memory"
            logger().error(Event.SPILL_FULL, megabytes=chars // 1_000_000, effect=effect)
        elif was_full and not is_full:
            logger().info(Event.SPILL_HAS_ROOM, file=str(self._spill.path))


def _batches(ends: list[PendingSettlement]) -> list[list[PendingSettlement]]:
    batches: list[list[PendingSettlement]] = [[]]
    chars = 0
    for end in ends:
        if end.is_unspillable:
            continue
        if chars > BATCH_CHARS:
            batches.append([])
            chars = 0
        batches[-1].append(end)
        chars += end.chars
    return [batch for batch in batches if batch]
