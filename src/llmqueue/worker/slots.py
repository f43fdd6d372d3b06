"""The slots of this process: how many calls may run at once, and how many of them are kept for hot tasks.

Cold calls of two minutes fill every slot they are given. Hot tasks (priority 100 and more) must not wait for one of
them to end, so that a tenth of the slots, at least one, is never lent (design I13).
"""

from __future__ import annotations

from collections.abc import Collection

from llmqueue.types import Grant, Room

# One slot of that many is kept for hot tasks; a worker with a single slot keeps none.
SLOTS_PER_HOT = 10
# Ends that are on their way to the database hold no slot, if they are not more than a flush (docs/decisions.md, 31).
MOST_ENDED = 200


class Slots:
    """What runs here, by fence."""

    def __init__(self, slots: int) -> None:
        self._slots = slots
        self._for_cold = slots if slots == 1 else slots - max(1, slots // SLOTS_PER_HOT)
        self._running: dict[int, Grant] = {}
        self._ended: set[int] = set()  # of these, whose calls have ended
        self._cold = 0  # calls under way

    @property
    def running(self) -> Collection[Grant]:
        return self._running.values()

    @property
    def under_way(self) -> int:
        return len(self._running) - len(self._ended)

    def take(self, grant: Grant) -> None:
        self._running[grant.task.fence] = grant
        self._cold += not grant.task.is_hot

    def ended(self, grant: Grant) -> None:
        """The call has ended: its slot is free while its end is written, if not too many others are."""
        if grant.task.fence in self._running and grant.task.fence not in self._ended:
            self._ended.add(grant.task.fence)
            self._cold -= not grant.task.is_hot

    def free(self, grant: Grant) -> None:
        """Frees the grant's slot; one that is free already stays so."""
        self.ended(grant)
        self._running.pop(grant.task.fence, None)
        self._ended.discard(grant.task.fence)

    def room(self, at_most: int | None = None) -> Room:
        """Returns what is free, cut to `at_most` tasks. Hot calls take the slots that are kept for them first."""
        waiting = max(0, len(self._ended) - min(MOST_ENDED, self._slots))
        free = max(0, self._slots - self.under_way - waiting)
        for_any = max(0, min(free, self._for_cold - self._cold - waiting))
        if at_most is not None:
            free, for_any = min(free, at_most), min(for_any, at_most)
        return Room(for_any, free - for_any)
