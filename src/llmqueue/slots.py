"""The slots of this process: how many calls may run at once, and how many of them are kept for hot tasks.

Cold calls of two minutes fill every slot they are given. Hot tasks (priority 100 and more) must not wait for one of
them to end, so that a tenth of the slots, at least one, is never lent (design I13).
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from llmqueue.models import Grant

# One slot of that many is kept for hot tasks; a worker with a single slot keeps none.
SLOTS_PER_HOT = 10


@dataclass(frozen=True, slots=True)
class Room:
    """How many more tasks may be started: `for_any` of any kind, and `for_hot` more that are hot."""

    for_any: int
    for_hot: int

    @property
    def total(self) -> int:
        return self.for_any + self.for_hot


class Slots:
    """What runs here, by fence."""

    def __init__(self, slots: int) -> None:
        self._slots = slots
        self._for_cold = slots if slots == 1 else slots - max(1, slots // SLOTS_PER_HOT)
        self._running: dict[int, Grant] = {}
        self._cold = 0

    @property
    def running(self) -> Collection[Grant]:
        return self._running.values()

    def take(self, grant: Grant) -> None:
        self._running[grant.task.fence] = grant
        self._cold += not grant.task.is_hot

    def free(self, grant: Grant) -> None:
        """Frees the grant's slot; one that is free already stays so."""
        if self._running.pop(grant.task.fence, None) is not None:
            self._cold -= not grant.task.is_hot

    def room(self, at_most: int | None = None) -> Room:
        """Returns what is free, cut to `at_most` tasks. Hot calls take the slots that are kept for them first."""
        free = max(0, self._slots - len(self._running))
        for_any = max(0, min(free, self._for_cold - self._cold))
        if at_most is not None:
            free, for_any = min(free, at_most), min(for_any, at_most)
        return Room(for_any, free - for_any)
