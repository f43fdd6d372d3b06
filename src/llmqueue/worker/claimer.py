"""Claims tasks as fast as the limits allow and starts the calls for them.

One loop: consume the wake-up signal, decide, act, wait (design I16). The planner (planner.py) decides what to do and
until when to wait; this loop tells it the time, the free slots and the signals, and carries out its decisions.
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Sequence

import anyio
import anyio.lowlevel

from llmqueue.backend.health import BackendHealth
from llmqueue.db.clock import ClockWatch
from llmqueue.db.listen import WakeSignal
from llmqueue.db.outage import Backoff
from llmqueue.db.store import Store
from llmqueue.errors import DatabaseSilent, UnknownWorker
from llmqueue.logs import Event, logger
from llmqueue.spill.pending import PendingSettlements
from llmqueue.types import Claim, Room
from llmqueue.worker.executor import Executor
from llmqueue.worker.heartbeat import SWEPT, Heartbeat
from llmqueue.worker.in_flight import InFlight
from llmqueue.worker.planner import MAX_CLAIM, Ask, Planner, Wait

RETRY_S = (0.2, 1.0)
# How long after a claim whose answer was lost its tasks may still turn up.
LOST_FOR_S = 60.0


class Claimer:
    """Claims for the slots that `in_flight` has free, and hands the grants to `executor`.

    While `pending` is full nothing is claimed: there would be no place to keep the answers.
    """

    def __init__(
        self,
        store: Store,
        wake: WakeSignal,
        health: BackendHealth,
        heartbeat: Heartbeat,
        planner: Planner,
        in_flight: InFlight,
        pending: PendingSettlements,
        executor: Executor,
    ) -> None:
        self._store = store
        self._wake = wake
        self._health = health
        self._heartbeat = heartbeat
        self._planner = planner
        self._in_flight = in_flight
        self._pending = pending
        self._executor = executor
        self._clock = ClockWatch(store)
        self._claim_state: str | None = None
        self._epoch: int | None = None
        self._release_lost_until = 0.0
        self._must_register = True
        self._registrations = 0
        self._is_stopping = False
        self._claim_by = math.inf
        self._claiming: anyio.CancelScope | None = None

    def stop(self, claim_by: float) -> None:
        """Claims no more; what runs goes on. A claim that is under way is given up at that time of the event loop."""
        self._is_stopping = True
        self._claim_by = claim_by
        if self._claiming is not None:
            self._claiming.deadline = claim_by
        self._wake.set("stop")

    async def run(self) -> None:
        """Returns after stop()."""
        backoff = Backoff(*RETRY_S)
        while not self._is_stopping:
            with self._store.outage.tolerated() as tolerated:
                await self._look(backoff)
            if tolerated.error is not None:
                # Whether the claim took effect is not known: its tasks would belong to us and nobody would run them.
                self._planner.announcement_lost()
                self._release_lost_until = time.monotonic() + LOST_FOR_S
                await backoff.sleep()

    async def _look(self, backoff: Backoff) -> None:
        # Consumed before looking, never after: a signal in between would be lost.
        self._planner.hear(self._wake.consume(), time.monotonic())
        try:
            await self._register()
            gave_all = False
            match self._planner.decide(time.monotonic(), self._room(), self._heartbeat.due()):
                case Ask() as ask:
                    gave_all = await self._claim(ask)
                    look_at = self._planner.look_at(time.monotonic(), self._room())
                case Wait(until):
                    await self._maintain()
                    look_at = until
        except UnknownWorker:
            logger().warning(Event.WORKER_SWEPT, effect=SWEPT)
            self._must_register = True
            return
        self._store.outage.ended()
        backoff.reset()
        wait_s = look_at - time.monotonic()
        if wait_s > 0 or not gave_all:
            await self._wake.wait(wait_s)
        else:
            await anyio.lowlevel.checkpoint_if_cancelled()  # claims are shielded

    async def _register(self) -> None:
        if self._must_register:
            await self._heartbeat.register()
            self._must_register = False
        if self._heartbeat.registrations != self._registrations:  # a heartbeat may have been first to register anew
            self._registrations = self._heartbeat.registrations
            self._planner.announcement_lost()

    def _room(self) -> Room:
        """What may be started now, by the slots, the backend and the place for answers."""
        return self._in_flight.room().cut(0 if self._pending.is_full else self._health.at_most(MAX_CLAIM))

    async def _claim(self, ask: Ask) -> bool:
        """Returns whether it gave all that was asked for: the next one goes out before those calls begin."""
        await self.release_lost()
        may_sweep = "sweep" in self._heartbeat.due()  # not if the database went away meanwhile (design I9)
        maintenance = [step for step in ask.maintenance if step != "sweep" or may_sweep]
        asked_at = time.monotonic()
        with anyio.CancelScope(deadline=self._claim_by, shield=True) as self._claiming:
            claim = await self._store.claim(
                _shuffled(ask.models), ask.room, maintenance, self._in_flight.calls, self._claim_state
            )
        if self._claiming.cancelled_caught:
            raise DatabaseSilent("the worker stopped before its claim was answered")
        self._heartbeat.done(maintenance)
        self._claim_state = claim.claim_state or self._claim_state
        self._note_epoch(claim.epoch)
        if claim.clock_offset_s is not None and await self._clock.has_stepped(claim.clock_offset_s):
            self._executor.give_back(claim.grants)
            return False
        return self._start(ask, claim, asked_at)

    def _start(self, ask: Ask, claim: Claim, asked_at: float) -> bool:
        now = time.monotonic()
        claimed = self._planner.granted(len(claim.grants), now, now - asked_at)
        self._executor.start(claim.grants, claimed)
        gathering = {refusal.model for refusal in claim.refusals if self._executor.gathers(refusal.model)}
        return self._planner.answered(ask, claim, now, gathering)

    def _note_epoch(self, epoch: int | None) -> None:
        """In a new epoch ends that we had written may be lost: their tasks are ours again, and nobody runs them."""
        if epoch is None or epoch == self._epoch:
            return
        if self._epoch is not None:
            logger().warning(Event.EPOCH_CHANGED, epoch=epoch, effect="nothing is granted for a minute")
            self._release_lost_until = time.monotonic() + LOST_FOR_S
        self._epoch = epoch

    async def _maintain(self) -> None:
        if due := self._heartbeat.due():
            await self._store.maintain(due, self._in_flight.calls)
            self._heartbeat.done(due)

    async def release_lost(self) -> None:
        """Gives back what a claim whose answer was lost has claimed for us: nobody runs it."""
        if self._release_lost_until:
            if time.monotonic() > self._release_lost_until:
                self._release_lost_until = 0.0
            lost = await self._store.release_unknown_claims(list(self._in_flight.fences))
            if lost:
                logger().warning(Event.CLAIM_ANSWER_LOST, tasks=lost, effect="given back")


def _shuffled(models: Sequence[str] | None) -> list[str] | None:
    """In another order each time, so that no model is always served from the slots first."""
    return None if models is None else random.sample(models, len(models))
