"""Claims tasks as fast as the limits allow and starts an attempt for each.

One loop: clear the bell, look, act, wait (design I16). It asks for a model only when that can be of use: when the
retry_at of a refusal has come, when a bell rang, or by the poll, once a second for all models. Chores that are due ride
along with a claim, so that an idle worker needs one query a second for everything.
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Collection, Sequence

import anyio

from llmqueue.clock import ClockWatch
from llmqueue.errors import DatabaseUnreachable, SqlError, UnknownWorker
from llmqueue.gate import Gate
from llmqueue.leases import Leases
from llmqueue.logs import Event, logger
from llmqueue.models import LATE, Claim, Grant, Release, Settlement, Verdict
from llmqueue.store import Store
from llmqueue.wakeup import Bell

POLL_S = 1.0
# Two workers that are refused at the same moment should not come back at the same moment.
JITTER_S = 0.01
CONTENDED_S = (0.002, 0.015)
# Grants live for a quarter of a second: more at once could not all be sent in time. Late ones halve it (design I3).
MAX_CLAIM = 200
RETRY_S = (0.2, 1.0)
# How long after a claim whose answer was lost its tasks may still turn up.
DISOWN_FOR_S = 60.0


class Schedule:
    """When to ask for which model again (monotonic seconds; inf: only a bell or the poll)."""

    def __init__(self) -> None:
        self._ask_at: dict[str, float] = {}
        self._empty: set[str] = set()
        self._full: set[str] = set()

    def note(self, verdict: Verdict, now: float) -> None:
        model, retry_in_s = verdict.model, verdict.retry_in_s
        self._empty.discard(model)
        self._full.discard(model)
        match verdict.reason:
            case None:
                self._ask_at[model] = now
            case "contended":
                self._ask_at[model] = now + random.uniform(*CONTENDED_S)
            case "rpm" | "pace" if retry_in_s is not None:
                self._ask_at[model] = now + max(0.0, retry_in_s) + random.uniform(0, JITTER_S)
            case "unknown":
                self._ask_at.pop(model, None)
            case reason:
                self._ask_at[model] = math.inf
                if reason == "empty":
                    self._empty.add(model)
                if reason == "concurrency":
                    self._full.add(model)

    def task_came(self, now: float) -> None:
        self._ask_at |= dict.fromkeys(self._empty, now)

    def slot_freed(self, model: str, now: float) -> None:
        if model in self._full:
            self._ask_at[model] = now

    def config_changed(self, now: float) -> None:
        self._ask_at = dict.fromkeys(self._ask_at, now)

    def due(self, now: float) -> list[str]:
        return [model for model, ask_at in self._ask_at.items() if ask_at <= now]

    def next_at(self) -> float:
        return min(self._ask_at.values(), default=math.inf)

    @property
    def has_empty(self) -> bool:
        return bool(self._empty)


class Dispatcher:
    """`start(grant)` begins an attempt; `slots` bounds how many run at once in this process."""

    def __init__(
        self,
        store: Store,
        bell: Bell,
        gate: Gate,
        leases: Leases,
        start: Callable[[Grant], None],
        settle: Callable[[Settlement], None],
        *,
        slots: int,
        models: Sequence[str] | None,
    ) -> None:
        self._store = store
        self._bell = bell
        self._gate = gate
        self._leases = leases
        self._start = start
        self._settle = settle
        self._slots = slots
        self._models = models
        self._schedule = Schedule()
        self._clock = ClockWatch(store)
        self._running: dict[int, Grant] = {}
        self._poll_at = 0.0
        self._claim_size = MAX_CLAIM
        self._late_grants = 0
        self._has_said_idle = False
        self._disown_until = 0.0
        self._must_register = True
        self._is_stopping = False

    @property
    def running(self) -> Collection[Grant]:
        return self._running.values()

    def settled(self, settlement: Settlement) -> None:
        """Frees the slot of an attempt whose end is in the database."""
        grant = settlement.grant
        was_full = len(self._running) >= self._slots
        self._running.pop(grant.task.fence, None)
        self._schedule.slot_freed(grant.model, time.monotonic())
        if settlement.decision == LATE:
            self._late_grants += 1
        if was_full or self._schedule.next_at() <= time.monotonic():
            self._bell.ring("slot")

    def stop(self) -> None:
        """Claims no more; what runs goes on."""
        self._is_stopping = True
        self._bell.ring("stop")

    async def run(self) -> None:
        """Returns after stop()."""
        pause_s = RETRY_S[0]
        while not self._is_stopping:
            self._heed(self._bell.clear())
            try:
                await self._round()
                self._store.outage.ended()
                pause_s = RETRY_S[0]
                await self._bell.wait(self._wait_s())
            except UnknownWorker:
                logger().warning(Event.WORKER_SWEPT, effect="registering again; answers under way are still accepted")
                self._must_register = True
            except (DatabaseUnreachable, SqlError) as error:
                # Whether the claim took effect is not known: its tasks would belong to us and nobody would run them.
                self._has_said_idle = False
                self._disown_until = time.monotonic() + DISOWN_FOR_S
                self._store.outage.began(error)
                await anyio.sleep(random.uniform(pause_s / 2, pause_s))
                pause_s = min(2 * pause_s, RETRY_S[1])

    def _heed(self, rung: set[str]) -> None:
        now = time.monotonic()
        if "config" in rung:
            self._schedule.config_changed(now)
            self._poll_at = now
        if "task" in rung:
            self._schedule.task_came(now)

    async def _round(self) -> None:
        if self._must_register:
            await self._leases.register()
            self._must_register = self._has_said_idle = False
        now = time.monotonic()
        is_poll = now >= self._poll_at
        free = min(self._slots - len(self._running), self._next_claim_size())
        models = self._models if is_poll else self._schedule.due(now)
        if is_poll:
            self._poll_at = now + POLL_S
        if free <= 0 or not self._gate.is_open or (models is not None and not models):
            await self._only_chores()
            return
        await self._disown()
        chores = [*self._leases.due_chores(), *self._idle_chore()]
        with anyio.CancelScope(shield=True):
            claim = await self._store.claim(_shuffled(models), free, chores, len(self._running))
        self._leases.done(chores)
        if claim.clock_offset_s is not None and await self._clock.has_stepped(claim.clock_offset_s):
            self._give_back(claim)
        else:
            self._take(claim)

    def _next_claim_size(self) -> int:
        """Halves after late grants, grows by a tenth otherwise: as many as this process can send in time."""
        if self._late_grants:
            self._claim_size = max(1, self._claim_size // 2)
            self._late_grants = 0
        else:
            self._claim_size = min(MAX_CLAIM, self._claim_size + self._claim_size // 10 + 1)
        return self._claim_size

    async def _only_chores(self) -> None:
        chores = self._leases.due_chores()
        if chores:
            await self._store.do_chores(chores, len(self._running))
            self._leases.done(chores)

    def _idle_chore(self) -> list[str]:
        """Says that we wait for work, in a claim that is followed by another look, so that nothing falls between."""
        if self._schedule.has_empty and not self._has_said_idle:
            self._has_said_idle = True
            self._bell.ring("task")
            return ["idle"]
        if self._has_said_idle and not self._schedule.has_empty and self._leases.is_due:
            self._has_said_idle = False
            return ["busy"]
        return []

    def _take(self, claim: Claim) -> None:
        now = time.monotonic()
        for verdict in claim.verdicts:
            self._schedule.note(verdict, now)
        for grant in claim.grants:
            self._running[grant.task.fence] = grant
            self._start(grant)
        if self._schedule.has_empty and not self._has_said_idle:
            self._bell.ring("task")  # the next look says that we wait, and is followed by another

    def _give_back(self, claim: Claim) -> None:
        for grant in claim.grants:
            self._running[grant.task.fence] = grant
            self._settle(Settlement(grant, Release("clock_step"), None, None))

    def _wait_s(self) -> float:
        if len(self._running) >= self._slots or not self._gate.is_open:
            return POLL_S
        return max(0.0, min(self._schedule.next_at(), self._poll_at) - time.monotonic())

    async def _disown(self) -> None:
        if self._disown_until:
            if time.monotonic() > self._disown_until:
                self._disown_until = 0.0
            lost = await self._store.disown([grant.task.fence for grant in self.running])
            if lost:
                logger().warning(Event.CLAIM_ANSWER_LOST, tasks=lost, effect="given back")


def _shuffled(models: Sequence[str] | None) -> list[str] | None:
    """In another order each time, so that no model is always served from the slots first."""
    return None if models is None else random.sample(models, len(models))
