"""One simulated worker: what claimer.py does, as events.

The decisions are those of the real worker (its Planner, its Slots, its policy); only the waits are drawn instead of
spent: a few milliseconds for a claim, up to 20 ms until the first byte leaves. A hot task has no claim of its own here:
none is longer than another.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from functools import partial
from random import Random
from typing import Protocol
from uuid import UUID

from llmqueue.forecast.providers import Endpoint
from llmqueue.forecast.timeline import Timeline
from llmqueue.types import LATE, Claim, Grant, Reply, Room, Settlement
from llmqueue.worker import policy
from llmqueue.worker.claimer import MAX_CLAIM, POLL_S
from llmqueue.worker.heartbeat import CALIBRATE_S, PROMOTE_S, PRUNE_S
from llmqueue.worker.planner import Planner
from llmqueue.worker.slots import Slots

CLAIM_S = (0.002, 0.006)
SEND_S = (0.0, 0.02)
# Ends are written together for longer than by a real worker (0.02 s): fewer statements, and calls take seconds.
LINGER_S = 0.1
LEASE_S = 20.0
_CHORES = {
    "heartbeat": LEASE_S / 5,
    "sweep": LEASE_S / 5,
    "promote": PROMOTE_S,
    "prune": PRUNE_S,
    "calibrate": CALIBRATE_S,
}


class Scheduler(Protocol):
    """The SQL functions, given the simulated time in seconds since the start."""

    def claim(
        self,
        worker: UUID,
        models: Sequence[str] | None,
        room: Room,
        chores: Sequence[str],
        running: int,
        claim_state: str | None,
        at_s: float,
    ) -> Claim: ...

    def maintain(self, worker: UUID, chores: Sequence[str], running: int, at_s: float) -> None: ...

    def settle(self, worker: UUID, settlements: Sequence[Settlement], at_s: float) -> Mapping[int, str]:
        """Returns what became of each, by fence."""
        ...


class Witness(Protocol):
    """Sees what the workers do."""

    def sent(self, grant: Grant, at_s: float) -> None: ...

    def settled(self, settlement: Settlement, outcome: str, at_s: float) -> None: ...


class Worker:
    """Claims for `slots` calls at a time. `start` it once; after that it lives on the timeline."""

    def __init__(
        self,
        worker: UUID,
        slots: int,
        scheduler: Scheduler,
        endpoints: Mapping[str, Endpoint],
        timeline: Timeline,
        witness: Witness,
        rng: Random,
    ) -> None:
        self.worker = worker
        self._slots = Slots(slots)
        self._scheduler = scheduler
        self._endpoints = endpoints
        self._timeline = timeline
        self._witness = witness
        self._rng = rng
        self._planner = Planner()
        self._turns: str | None = None
        self._done_at = dict.fromkeys(_CHORES, -math.inf)
        self._poll_at = 0.0
        self._hot_poll_at = 0.0
        self._wake_at = math.inf
        self._is_claiming = False
        self._has_said_idle = False
        self._ends: list[Settlement] = []

    def start(self) -> None:
        """Looks for work within the first second: workers do not start at the same moment."""
        self._poll_at = self._hot_poll_at = self._timeline.now + self._rng.uniform(0, POLL_S)
        self._wake(self._poll_at)

    def ring(self, bells: Collection[str]) -> None:
        """What a NOTIFY does."""
        now = self._timeline.now
        if "config" in bells:
            self._planner.config_changed(now)
            self._poll_at = self._hot_poll_at = now
        if "task" in bells:
            self._planner.task_came(now)
        if "hot" in bells:
            self._planner.hot_came(now)
        self._wake_when_due()

    def _wake(self, at_s: float) -> None:
        if at_s < self._wake_at:
            self._wake_at = at_s
            self._timeline.at(at_s, partial(self._woken, at_s))

    def _woken(self, planned_at_s: float) -> None:
        if planned_at_s == self._wake_at:  # else another came before it
            self._wake_at = math.inf
            if not self._is_claiming:
                self._round()

    def _wake_when_due(self) -> None:
        if self._is_claiming:
            return
        room = self._slots.room()
        if not room.total:
            self._wake(self._timeline.now + POLL_S)
        elif room.for_any:
            self._wake(min(self._planner.next_at(), self._poll_at))
        else:
            self._wake(min(self._planner.next_hot_at(), self._hot_poll_at))

    def _round(self) -> None:
        now = self._timeline.now
        room, running = self._slots.room(MAX_CLAIM), self._slots.under_way
        models = self._models_to_ask(room)
        chores = self._due_chores()
        if models is not None and not models:
            if chores:
                self._scheduler.maintain(self.worker, chores, running, now)
            self._wake_when_due()
            return
        if room.for_any:
            chores += self._idle_chore()
        claim = self._scheduler.claim(self.worker, models, room, chores, running, self._turns, now)
        self._is_claiming = True
        self._timeline.at(now + self._rng.uniform(*CLAIM_S), partial(self._take, claim, room))

    def _models_to_ask(self, room: Room) -> list[str] | None:
        """As the claimer's: all (None) when a poll is due, else those whose time has come."""
        now = self._timeline.now
        if not room.total:
            return []
        if now >= (self._poll_at if room.for_any else self._hot_poll_at):
            self._hot_poll_at = now + POLL_S
            self._poll_at = now + POLL_S if room.for_any else self._poll_at
            return None
        due = self._planner.due(now) if room.for_any else self._planner.hot_due(now)
        return self._rng.sample(due, len(due))

    def _due_chores(self) -> list[str]:
        now = self._timeline.now
        due = [chore for chore, every_s in _CHORES.items() if now - self._done_at[chore] >= every_s]
        self._done_at |= dict.fromkeys(due, now)
        return due

    def _idle_chore(self) -> list[str]:
        if self._planner.has_empty and not self._has_said_idle:
            self._has_said_idle = True
            self._planner.task_came(self._timeline.now)  # looks once more: nothing falls in between
            return ["idle"]
        return []

    def _take(self, claim: Claim, room: Room) -> None:
        self._is_claiming = False
        now = self._timeline.now
        self._turns = claim.claim_state or self._turns
        given = {grant.model for grant in claim.grants}
        for verdict in claim.refusals:
            if room.for_any:
                self._planner.note(verdict, now)
            else:
                self._planner.note_hot(verdict, now, has_given=verdict.model in given)
        for grant in claim.grants:
            self._slots.take(grant)
            send_at = now + self._rng.uniform(*SEND_S)
            if send_at > grant.send_before:
                self._settle(Settlement(grant, LATE, None, None))
            else:
                self._timeline.at(send_at, partial(self._send, grant))
        self._wake_when_due()

    def _send(self, grant: Grant) -> None:
        now = self._timeline.now
        self._witness.sent(grant, now)
        reply, after_s = self._endpoints[grant.model].call(now, grant.timeout_s)
        self._timeline.at(now + after_s, partial(self._replied, grant, reply, now))

    def _replied(self, grant: Grant, reply: Reply, sent_at_s: float) -> None:
        decision = policy.decide(reply, grant.task.attempt_no, self._rng)
        latency_s = self._timeline.now - sent_at_s
        self._settle(Settlement(grant, decision, sent_at_s - grant.granted_at, latency_s))

    def _settle(self, settlement: Settlement) -> None:
        self._ends.append(settlement)
        self._slots.ended(settlement.grant)
        self._wake_when_due()
        if len(self._ends) == 1:
            self._timeline.at(self._timeline.now + LINGER_S, self._flush)

    def _flush(self) -> None:
        now = self._timeline.now
        ends, self._ends = self._ends, []
        outcomes = self._scheduler.settle(self.worker, ends, now)
        for settlement in ends:
            self._slots.free(settlement.grant)
            self._planner.slot_freed(settlement.grant.model, now)
            self._witness.settled(settlement, outcomes[settlement.grant.task.fence], now)
        self._wake_when_due()
