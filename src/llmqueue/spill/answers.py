"""Answers that lie in the spill: let go of in memory, read back for a flush, and the file removed at last."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from uuid import UUID

from anyio import to_thread

from llmqueue.logs import Event, logger
from llmqueue.spill.codec import Damaged
from llmqueue.spill.file import Place, Spill
from llmqueue.spill.pending import PendingSettlement
from llmqueue.types import Bury, Complete, Retry, Settlement

# A disk that has not given an answer back for that long has lost it.
UNREADABLE_FOR_S = 60.0


class SpilledAnswers:
    """The answers of one spill file, ours or one that a former worker left."""

    def __init__(self, spill: Spill) -> None:
        self._spill = spill
        self._is_unreadable_logged = False
        self._is_unfinished_logged = False

    @property
    def worker(self) -> UUID:
        """Whose attempts these are."""
        return self._spill.worker

    def spilled(self, end: PendingSettlement, place: Place) -> None:
        """Lets go of an answer that is in the spill; the database may have taken it meanwhile."""
        if end.is_settled:
            self._spill.settled(is_known=True)
        else:
            end.place = place
            if not end.is_buried:
                end.settlement = end.settlement.without_answer()

    def settled(self, end: PendingSettlement, *, is_known: bool) -> None:
        """The database has dealt with an end; `is_known`: it knows the attempt."""
        end.is_settled = True
        if end.place is not None:
            self._spill.settled(is_known=is_known)

    async def load(self, ends: list[PendingSettlement]) -> list[Settlement | None]:
        """Returns the ends with their answers; None where the disk does not give it back now."""
        if all(end.place is None for end in ends):
            return [end.settlement for end in ends]
        return await to_thread.run_sync(lambda: [self._read(end) for end in ends])

    async def tidy(self) -> None:
        """Removes the file once nothing waits in it."""
        if not self._spill.is_done:
            return
        try:
            kept = await to_thread.run_sync(self._spill.finish)
        except OSError as error:
            # Its ends are settled: whoever inherits it finds nothing to do. Tried again with each flush.
            if not self._is_unfinished_logged:
                self._is_unfinished_logged = True
                self._log_failed(error, "a file in which all is settled cannot be removed")
            return
        self._is_unfinished_logged = False
        self._log_settled(kept)

    def close(self) -> None:
        """Closes the spill, and with it its lock."""
        self._spill.close()

    def _read(self, end: PendingSettlement) -> Settlement | None:
        """Returns None when the disk fails. A lost answer becomes a failed attempt: there is nothing left to send."""
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
        if not self._is_unreadable_logged:
            self._is_unreadable_logged = True
            effect = f"tried for {UNREADABLE_FOR_S:.0f} s, then the attempt has failed and the file is kept"
            self._log_failed(error, effect)
        return now - end.unread_since > UNREADABLE_FOR_S

    def _log_failed(self, error: OSError, effect: str) -> None:
        reason = error.strerror or str(error)
        logger().error(Event.SPILL_FAILED, file=str(self._spill.path), error=reason, effect=effect)

    def _log_settled(self, kept: Path | None) -> None:
        if kept is None:
            logger().info(Event.SPILL_SETTLED, file=str(self._spill.path))
        else:
            remedy = "the database does not know an attempt of it, or a line is damaged: look for answers you miss"
            logger().warning(Event.SPILL_LEFT, file=str(kept), remedy=remedy)
