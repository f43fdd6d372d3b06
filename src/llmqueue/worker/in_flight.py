"""The tasks that this process holds, and in what state: call under way, ended, settled. Nobody else keeps a list.

A task enters with its claim (take), its call ends (ended), its end is in the database (settled), and it is gone. From
this follow the free slots, how late the grants were (planner), how calls and batches went (batching), whether the
claimer has to look again (wake), and what a stop has to wait for.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Protocol

import anyio

from llmqueue.types import LATE, Grant, Room, Settlement
from llmqueue.worker.batching import Batch, Batching
from llmqueue.worker.grant_expiry import ClaimedGrants
from llmqueue.worker.planner import Planner

# One slot of that many is kept for hot tasks; a worker with a single slot keeps none.
SLOTS_PER_HOT = 10
# Ends that are on their way to the database hold no slot, if they are not more than a flush (docs/decisions.md, 31).
MOST_ENDED = 200


class Wake(Protocol):
    """What a WakeSignal is to us."""

    @property
    def is_set(self) -> bool: ...

    def set(self, what: str) -> None: ...


@dataclass(slots=True)
class _Held:
    """A task of ours; `claimed` is its claim, None when it was given back at once, `batch` the call it shares."""

    grant: Grant
    claimed: ClaimedGrants | None
    batch: Batch | None
    has_ended: bool = False


class InFlight:
    """Bounds what runs at once to `slots`, and keeps a tenth of them, at least one, for hot tasks.

    Cold calls of two minutes fill every slot they are given. A hot task (priority 100 and more) must not wait for one
    of them to end (design I13).
    """

    def __init__(self, slots: int, planner: Planner, batching: Batching, wake: Wake) -> None:
        self._slots = slots
        self._for_cold = slots if slots == 1 else slots - max(1, slots // SLOTS_PER_HOT)
        self._planner = planner
        self._batching = batching
        self._wake = wake
        self._held: dict[int, _Held] = {}  # by fence
        self._ended = 0  # of these, whose calls have ended
        self._cold_calls = 0
        self._changed: anyio.Event | None = None

    @property
    def fences(self) -> Collection[int]:
        """All tasks that are ours: their calls are under way, or their ends are not in the database yet."""
        return self._held.keys()

    @property
    def calls(self) -> int:
        """How many calls are under way; each task of a batch counts."""
        return len(self._held) - self._ended

    def room(self) -> Room:
        """Returns what is free. Hot calls take the slots that are kept for them first."""
        waiting = max(0, self._ended - min(MOST_ENDED, self._slots))
        free = max(0, self._slots - self.calls - waiting)
        for_any = max(0, min(free, self._for_cold - self._cold_calls - waiting))
        return Room(for_any, free - for_any)

    def take(self, grant: Grant, claimed: ClaimedGrants | None = None, batch: Batch | None = None) -> None:
        self._held[grant.task.fence] = _Held(grant, claimed, batch)
        self._cold_calls += not grant.task.is_hot

    def ended(self, settlement: Settlement) -> None:
        """The call has ended: its slot is free while its end is written, if not too many others are."""
        held = self._held.get(settlement.grant.task.fence)
        if held is None or held.has_ended:
            return
        was_full = not self._wake.is_set and not self.room().for_any
        self._end(held)
        if held.claimed is not None:
            self._planner.grant_ended(held.claimed, is_late=settlement.decision == LATE)
        if was_full:
            self._wake.set("slot")
        self._notify()

    def settled(self, settlement: Settlement, now: float) -> None:
        """The end is in the database. An end of a former worker, from its spill file, is not in our list: ignored."""
        held = self._held.get(settlement.grant.task.fence)
        if held is None or (held.grant is not settlement.grant and held.grant != settlement.grant):
            return
        had_room = self._wake.is_set or self.room().for_any > 0
        if not held.has_ended:
            self._end(held)
        del self._held[held.grant.task.fence]
        self._ended -= 1
        self._planner.slot_freed(held.grant.model, now)
        self._batching.ended(settlement, held.batch)
        # the claimer may be waiting for no more than it could have started before
        if not self._wake.is_set and (not had_room or self._planner.look_at(now, self.room()) <= now):
            self._wake.set("slot")
        self._notify()

    async def change(self) -> None:
        """Waits until a call ends or is settled."""
        self._changed = anyio.Event()
        await self._changed.wait()

    def _end(self, held: _Held) -> None:
        held.has_ended = True
        self._ended += 1
        self._cold_calls -= not held.grant.task.is_hot

    def _notify(self) -> None:
        if self._changed is not None:
            self._changed.set()
