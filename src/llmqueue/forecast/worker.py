"""One simulated worker: what the claimer, the executor and the flusher do, as events.

The decisions are those of the real worker (its Planner, its InFlight, its policy); only the waits are drawn instead of
spent: a few milliseconds for a claim, up to 20 ms until the first byte leaves.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from functools import partial
from random import Random
from typing import Protocol
from uuid import UUID

from llmqueue.backend.classify import classify
from llmqueue.forecast.providers import Endpoint
from llmqueue.forecast.timeline import Timeline
from llmqueue.types import LATE, Claim, Grant, Reply, Room, Settlement
from llmqueue.worker import policy
from llmqueue.worker.batching import Batching
from llmqueue.worker.in_flight import InFlight
from llmqueue.worker.maintenance import MaintenanceSchedule
from llmqueue.worker.planner import POLL_S, Ask, Planner, Wait

CLAIM_S = (0.002, 0.006)
SEND_S = (0.0, 0.02)
# Ends are written together for longer than by a real worker (0.02 s): fewer statements, and calls take seconds.
LINGER_S = 0.1
LEASE_S = 20.0


class Scheduler(Protocol):
    """The SQL functions, given the simulated time in seconds since the start."""

    def claim(
        self,
        worker: UUID,
        models: Sequence[str] | None,
        room: Room,
        maintenance: Sequence[str],
        running: int,
        claim_state: str | None,
        at_s: float,
    ) -> Claim: ...

    def maintain(self, worker: UUID, maintenance: Sequence[str], running: int, at_s: float) -> None: ...

    def settle(self, worker: UUID, settlements: Sequence[Settlement], at_s: float) -> Mapping[int, str]:
        """Returns what became of each, by fence."""
        ...


class Witness(Protocol):
    """Sees what the workers do."""

    def sent(self, grant: Grant, at_s: float) -> None: ...

    def settled(self, settlement: Settlement, outcome: str, at_s: float) -> None: ...


class _Wake:
    """The wake-up signal of a simulated worker, which looks after each event anyway whether it is time to claim."""

    is_set = True

    def set(self, what: str) -> None: ...


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
        self._scheduler = scheduler
        self._endpoints = endpoints
        self._timeline = timeline
        self._witness = witness
        self._rng = rng
        # Workers do not start at the same moment.
        self._planner = Planner(rng, first_poll_at=timeline.now + rng.uniform(0, POLL_S))
        self._in_flight = InFlight(slots, self._planner, Batching(can_batch=False), _Wake())
        self._maintenance = MaintenanceSchedule(LEASE_S)
        self._claim_state: str | None = None
        self._wake_at = math.inf
        self._is_claiming = False
        self._ends: list[Settlement] = []

    def start(self) -> None:
        """Looks for work within the first second."""
        self._wake_when_due()

    def hear(self, signals: Collection[str]) -> None:
        """What a NOTIFY does."""
        self._planner.hear(signals, self._timeline.now)
        self._wake_when_due()

    def _wake_when_due(self) -> None:
        if not self._is_claiming:
            now = self._timeline.now
            self._wake(max(now, self._planner.look_at(now, self._in_flight.room())))

    def _wake(self, at_s: float) -> None:
        if at_s < self._wake_at:
            self._wake_at = at_s
            self._timeline.at(at_s, partial(self._woken, at_s))

    def _woken(self, planned_at_s: float) -> None:
        if planned_at_s == self._wake_at:  # else another came before it
            self._wake_at = math.inf
            if not self._is_claiming:
                self._look()

    def _look(self) -> None:
        now, calls = self._timeline.now, self._in_flight.calls
        due = self._maintenance.due(now)
        match self._planner.decide(now, self._in_flight.room(), due):
            case Ask(models, room, maintenance) as ask:
                asked = models if models is None else self._rng.sample(models, len(models))
                claim = self._scheduler.claim(self.worker, asked, room, maintenance, calls, self._claim_state, now)
                self._is_claiming = True
                self._timeline.at(now + self._rng.uniform(*CLAIM_S), partial(self._take, ask, claim, now))
            case Wait(until):
                if due:
                    self._scheduler.maintain(self.worker, due, calls, now)
                self._wake(max(now, until))
        self._maintenance.done(due, now)

    def _take(self, ask: Ask, claim: Claim, asked_at_s: float) -> None:
        self._is_claiming = False
        now = self._timeline.now
        self._claim_state = claim.claim_state or self._claim_state
        claimed = self._planner.granted(len(claim.grants), now, now - asked_at_s)
        for grant in claim.grants:
            self._in_flight.take(grant, claimed)
            send_at = now + self._rng.uniform(*SEND_S)
            if send_at > grant.send_before:
                self._end(Settlement(grant, LATE, None, None))
            else:
                self._timeline.at(send_at, partial(self._send, grant))
        self._planner.answered(ask, claim, now, gathering=())
        self._wake_when_due()

    def _send(self, grant: Grant) -> None:
        now = self._timeline.now
        self._witness.sent(grant, now)
        reply, after_s = self._endpoints[grant.model].call(now, grant.timeout_s)
        self._timeline.at(now + after_s, partial(self._replied, grant, reply, now))

    def _replied(self, grant: Grant, reply: Reply, sent_at_s: float) -> None:
        decision = policy.decide(reply, classify(reply).blame, grant.task.attempt_no, self._rng)
        latency_s = self._timeline.now - sent_at_s
        self._end(Settlement(grant, decision, sent_at_s - grant.granted_at, latency_s))

    def _end(self, settlement: Settlement) -> None:
        self._ends.append(settlement)
        self._in_flight.ended(settlement)
        self._wake_when_due()
        if len(self._ends) == 1:
            self._timeline.at(self._timeline.now + LINGER_S, self._flush)

    def _flush(self) -> None:
        now = self._timeline.now
        ends, self._ends = self._ends, []
        outcomes = self._scheduler.settle(self.worker, ends, now)
        for settlement in ends:
            self._in_flight.settled(settlement, now)
            self._witness.settled(settlement, outcomes[settlement.grant.task.fence], now)
        self._wake_when_due()
