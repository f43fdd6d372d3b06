"""Ends of attempts on their way to the database: in memory, or with their answer in the spill."""

from __future__ import annotations

import json
import time
from collections import deque
from dataclasses import dataclass, field

from llmqueue.spill.file import Left, Place
from llmqueue.types import Bury, Complete, Settlement


@dataclass(slots=True, eq=False)
class PendingSettlement:
    """`settlement` lacks its answer while that lies at `place` in the spill."""

    settlement: Settlement
    chars: int
    since: float = field(default_factory=time.monotonic)
    place: Place | None = None
    is_settled: bool = False
    # not JSON: only the database's own error would tell, and it stays in memory
    is_unspillable: bool = False
    # it was replaced by an error that any database can take, and that error is in memory
    is_buried: bool = False
    # since when the disk does not give its answer back
    unread_since: float | None = None

    @property
    def is_in_memory(self) -> bool:
        return self.place is None and not self.is_settled


class PendingSettlements:
    """All that one flusher has to write, in order: `waiting`, `flushing` now, or held because its row is busy."""

    def __init__(self) -> None:
        self.waiting: deque[PendingSettlement] = deque()
        self.flushing: list[PendingSettlement] = []
        self._held: deque[PendingSettlement] = deque()
        self._held_since = 0.0
        self.is_behind = False
        """The database was away, and not all that waited for it has been sent since."""
        self.is_full = False
        """Neither the spill nor memory has room for another answer: nothing more should be claimed."""

    def __len__(self) -> int:
        return len(self.waiting) + len(self._held) + len(self.flushing)

    @property
    def has_held(self) -> bool:
        return bool(self._held)

    def put(self, settlement: Settlement) -> None:
        decision = settlement.decision
        answer = decision.answer if isinstance(decision, Complete | Bury) else None
        chars = len(answer) if isinstance(answer, str) else len(json.dumps(answer))
        self.waiting.append(PendingSettlement(settlement, chars))

    def put_left(self, left: Left) -> None:
        """Takes over an end that a former worker left in its spill."""
        end = PendingSettlement(left.settlement, left.place.length, place=left.place)
        if left.ended_at is not None:
            end.since -= max(0.0, time.time() - left.ended_at)
        self.waiting.append(end)
        self.is_behind = True

    def take(self, most: int, most_chars: int) -> None:
        """Moves the first ends to `flushing`, as many as may go together."""
        batch: list[PendingSettlement] = []
        chars = 0
        while self.waiting and len(batch) < most and chars < most_chars:
            end = self.waiting.popleft()
            batch.append(end)
            chars += end.chars
        self.flushing = batch

    def put_back(self) -> None:
        """The flush has failed: its ends are the first again."""
        self.waiting.extendleft(reversed(self.flushing))
        self.flushing = []

    def hold(self, end: PendingSettlement) -> None:
        """Keeps an end that cannot be written now: somebody holds its row, or the disk its answer."""
        if not self._held:
            self._held_since = time.monotonic()
        self._held.append(end)

    def held_for(self, now: float) -> float:
        """Returns for how many seconds the oldest held end has been held."""
        return now - self._held_since

    def release_held(self) -> None:
        self.waiting.extend(self._held)
        self._held.clear()

    def in_memory(self) -> list[PendingSettlement]:
        """Returns the ends whose answers are in memory only."""
        return [end for ends in (self.flushing, self._held, self.waiting) for end in ends if end.is_in_memory]
