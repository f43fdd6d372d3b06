"""Claims tasks as fast as the limits allow and starts the calls for them.

One loop: clear the wake, look, act, wait (design I16). It asks for a model only when that can be of use: when the
retry_at of a refusal has come, when a wake rang, or by the poll, once a second for all models, be they closed or out of
their day's quota: that is one statement. Chores that are due ride along with a claim, so that an idle worker needs one
query a second for everything. While only slots for hot tasks are free it asks for those alone; and first for those when
one has come while cold ones wait: that claim is short.
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Collection, Sequence

import anyio
import anyio.lowlevel

from llmqueue.backend.health import BackendHealth
from llmqueue.db.clock import ClockWatch
from llmqueue.db.listen import WakeSignal
from llmqueue.db.store import Store
from llmqueue.errors import DatabaseSilent, DatabaseUnreachable, SqlError, UnknownWorker
from llmqueue.logs import Event, logger
from llmqueue.types import LATE, Claim, Grant, Release, Room, Settlement
from llmqueue.worker.batching import Batching
from llmqueue.worker.grant_expiry import GrantExpiry
from llmqueue.worker.heartbeat import SWEPT, Heartbeat
from llmqueue.worker.planner import Planner
from llmqueue.worker.slots import Slots

POLL_S = 1.0
# Grants live for a quarter of a second: more at once could not all be sent in time. Late ones halve it (design I3).
MAX_CLAIM = 200
# The first claim of a session compiles and plans; a large one would be late as a whole.
FIRST_CLAIM = 32
RETRY_S = (0.2, 1.0)
# Of a model that may have more tasks for us than it may be given now.
QUOTA_REASONS = {"rpm", "pace", "burst", "tpm", "day", "concurrency"}
# How long after a claim whose answer was lost its tasks may still turn up.
DISOWN_FOR_S = 60.0


class Claimer:
    """`start(*grants)` begins a call for one or more tasks; `slots` bounds how many tasks run at once in this process.

    While `is_full()` nothing is claimed: there would be no place to keep the answers.
    """

    def __init__(
        self,
        store: Store,
        wake: WakeSignal,
        gate: BackendHealth,
        leases: Heartbeat,
        start: Callable[..., None],
        settle: Callable[[Settlement], None],
        *,
        slots: int,
        models: Sequence[str] | None,
    ) -> None:
        self._store = store
        self._wake = wake
        self._health = gate
        self._heartbeat = leases
        self._batching = Batching(can_batch=gate.can_batch)
        self._start = start
        self._settle = settle
        self._slots = Slots(slots)
        self._models = models
        self.is_full: Callable[[], bool] = lambda: False
        self._planner = Planner()
        self._clock = ClockWatch(store)
        self._poll_at = 0.0
        self._hot_poll_at = 0.0
        self._turns: str | None = None
        self._epoch: int | None = None
        self._claim_size = FIRST_CLAIM
        self._late_grants = 0
        self._expiry = GrantExpiry()
        self._settled_models: set[str] = set()  # since the claim was asked for
        self._has_said_idle = False
        self._hot_has_come = False
        self._was_for_hot = False
        self._hot_first_at = -math.inf
        self._disown_until = 0.0
        self._must_register = True
        self._registrations = 0
        self._is_stopping = False
        self._claim_by = math.inf
        self._claiming: anyio.CancelScope | None = None

    @property
    def running(self) -> Collection[Grant]:
        """What is ours: the calls under way, and those whose ends are not in the database yet."""
        return self._slots.running

    @property
    def under_way(self) -> int:
        """How many calls are."""
        return self._slots.under_way

    def ended(self, settlement: Settlement) -> None:
        """A call has ended: its slot is free, while its end is on its way to the database."""
        was_full = not self._wake.is_set and not self._slots.room().for_any
        self._slots.ended(settlement.grant)
        self._expiry.ended(settlement)
        if settlement.decision == LATE:
            self._late_grants += 1
        if was_full:
            self._wake.set("slot")

    def settled(self, settlement: Settlement) -> None:
        """The end of an attempt is in the database."""
        grant = settlement.grant
        had_room = self._wake.is_set or self._slots.room().for_any > 0
        self._slots.free(grant)
        self._planner.slot_freed(grant.model, time.monotonic())
        self._settled_models.add(grant.model)
        self._batching.ended(settlement)
        # the loop may be waiting for no more than it could have started before
        if not self._wake.is_set and (not had_room or self._wait_s() <= 0):
            self._wake.set("slot")

    def stop(self, claim_by: float) -> None:
        """Claims no more; what runs goes on. A claim that is under way is given up at that time of the event loop."""
        self._is_stopping = True
        self._claim_by = claim_by
        if self._claiming is not None:
            self._claiming.deadline = claim_by
        self._wake.set("stop")

    async def run(self) -> None:
        """Returns after stop()."""
        pause_s = RETRY_S[0]
        while not self._is_stopping:
            self._apply(self._wake.consume())
            try:
                gave_all = await self._round()
                self._store.outage.ended()
                pause_s = RETRY_S[0]
                wait_s = self._wait_s()
                if wait_s > 0 or not gave_all:
                    await self._wake.wait(wait_s)
                else:
                    await anyio.lowlevel.checkpoint_if_cancelled()  # claims are shielded
            except UnknownWorker:
                logger().warning(Event.WORKER_SWEPT, effect=SWEPT)
                self._must_register = True
            except (DatabaseUnreachable, SqlError) as error:
                # Whether the claim took effect is not known: its tasks would belong to us and nobody would run them.
                self._has_said_idle = False
                self._disown_until = time.monotonic() + DISOWN_FOR_S
                self._store.outage.began(error)
                await anyio.sleep(random.uniform(pause_s / 2, pause_s))
                pause_s = min(2 * pause_s, RETRY_S[1])

    def _apply(self, reasons: frozenset[str]) -> None:
        now = time.monotonic()
        if "config" in reasons:
            self._planner.config_changed(now)
            self._poll_at = self._hot_poll_at = now
        if "task" in reasons:
            self._planner.task_came(now)
        if "hot" in reasons:
            self._planner.hot_came(now)
            self._hot_has_come = now >= self._hot_first_at and not self._planner.is_idle

    async def _round(self) -> bool:
        """Returns whether a claim gave all that it asked for: the next one goes out before those calls begin."""
        if self._must_register:
            await self._heartbeat.register()
            self._must_register = False
        if self._heartbeat.registrations != self._registrations:  # a heartbeat may have found it out first
            self._registrations = self._heartbeat.registrations
            self._has_said_idle = False
        room = self._hot_first(self._slots.room(at_most=self._health.at_most(self._next_claim_size())))
        models = self._models_to_ask(room, time.monotonic())
        if models is not None and not models:
            await self._only_chores()
            return False
        await self.disown_lost()
        asked_at = time.monotonic()
        self._settled_models = set()
        chores = [*self._heartbeat.due_chores(), *(self._idle_chore() if room.for_any else [])]
        with anyio.CancelScope(deadline=self._claim_by, shield=True) as self._claiming:
            claim = await self._store.claim(_shuffled(models), room, chores, self.under_way, self._turns)
        if self._claiming.cancelled_caught:
            raise DatabaseSilent("the worker stopped before its claim was answered")
        self._heartbeat.done(chores)
        self._turns = claim.claim_state or self._turns
        self._note_epoch(claim.epoch)
        if claim.clock_offset_s is not None and await self._clock.has_stepped(claim.clock_offset_s):
            self._give_back(claim)
        else:
            self._expiry.claimed(claim.grants, time.monotonic(), time.monotonic() - asked_at)
            self._take(claim, room)
        return 0 < room.for_any <= len(claim.grants) and not self._late_grants

    def _note_epoch(self, epoch: int | None) -> None:
        """In a new epoch ends that we had written may be lost: their tasks are ours again, and nobody runs them."""
        if epoch is None or epoch == self._epoch:
            return
        if self._epoch is not None:
            logger().warning(Event.EPOCH_CHANGED, epoch=epoch, effect="nothing is granted for a minute")
            self._disown_until = time.monotonic() + DISOWN_FOR_S
        self._epoch = epoch

    def _hot_first(self, room: Room) -> Room:
        """A claim for hot tasks alone when one has come, but not twice in a row: a flood would keep all others out."""
        self._was_for_hot = self._hot_has_come and not self._was_for_hot and room.for_any > 0
        self._hot_has_come = False
        return Room(0, room.total) if self._was_for_hot else room

    def _models_to_ask(self, room: Room, now: float) -> Sequence[str] | None:
        """Returns all (None, or those that this worker serves) when a poll is due, else those whose time has come.

        A poll for hot tasks alone does not count as one for the others: they have theirs with the first free slot.
        """
        if not room.total or self.is_full() or self._expiry.is_paused(now):
            return []
        if now >= (self._poll_at if room.for_any else self._hot_poll_at):
            self._hot_poll_at = now + POLL_S
            self._poll_at = now + POLL_S if room.for_any else self._poll_at
            return self._models
        return self._planner.due(now) if room.for_any else self._planner.hot_due(now)

    def _next_claim_size(self) -> int:
        """Halves after late grants, grows by a tenth otherwise: as many as this process can send in time."""
        if self._late_grants:
            self._claim_size = max(1, self._claim_size // 2)
            self._late_grants = 0
        else:
            self._claim_size = min(MAX_CLAIM, self._claim_size + self._claim_size // 10 + 1)
        return self._claim_size

    async def _only_chores(self) -> None:
        chores = self._heartbeat.due_chores()
        if chores:
            await self._store.maintain(chores, self.under_way)
            self._heartbeat.done(chores)

    def _idle_chore(self) -> list[str]:
        """Says that we wait for work, in a claim that is followed by another look, so that nothing falls between.

        Not while no NOTIFY can be heard: it would only cost those who insert.
        """
        if not self._wake.can_listen:
            return []
        if self._planner.has_empty and not self._has_said_idle:
            self._has_said_idle = True
            self._wake.set("task")
            return ["idle"]
        if self._has_said_idle and not self._planner.has_empty and self._heartbeat.is_due:
            self._has_said_idle = False
            return ["busy"]
        return []

    def _take(self, claim: Claim, room: Room) -> None:
        now = time.monotonic()
        given = {grant.model for grant in claim.grants}
        refused = {verdict.model for verdict in claim.refusals if verdict.reason in QUOTA_REASONS}
        if self._was_for_hot and refused and (refused & given or not given):
            # More come than their quota allows: claims of their own would only keep the oldest task from its turn.
            self._hot_first_at = now + POLL_S
        for together in self._batching.slices(claim.grants):
            for grant in together:
                self._slots.take(grant)
                self._health.started(grant)
            self._start(*together)
        for verdict in claim.refusals:
            if room.for_any:
                self._planner.note(verdict, now, gathers=self._batching.gathers(verdict.model))
            else:
                self._planner.note_hot(verdict, now, has_given=verdict.model in given)
            if verdict.reason == "concurrency" and verdict.model in self._settled_models:
                self._planner.slot_freed(verdict.model, now)  # the claim may have counted before that
        if self._wake.can_listen and room.for_any and self._planner.has_empty and not self._has_said_idle:
            self._wake.set("task")  # the next look says that we wait, and is followed by another

    def _give_back(self, claim: Claim) -> None:
        for grant in claim.grants:
            self._slots.take(grant)
            self._settle(Settlement(grant, Release("clock_step"), None, None))

    def _wait_s(self) -> float:
        room = self._slots.room(at_most=self._health.at_most(MAX_CLAIM))
        if not room.total or self.is_full():
            return POLL_S
        if room.for_any:
            next_at = min(self._planner.next_at(), self._poll_at)
        else:
            next_at = min(self._planner.next_hot_at(), self._hot_poll_at)
        now = time.monotonic()
        return max(0.0, next_at - now, min(POLL_S, self._expiry.paused_until - now))

    async def disown_lost(self) -> None:
        """Gives back what a claim whose answer was lost has claimed for us: nobody runs it."""
        if self._disown_until:
            if time.monotonic() > self._disown_until:
                self._disown_until = 0.0
            lost = await self._store.release_unknown_claims([grant.task.fence for grant in self.running])
            if lost:
                logger().warning(Event.CLAIM_ANSWER_LOST, tasks=lost, effect="given back")


def _shuffled(models: Sequence[str] | None) -> list[str] | None:
    """In another order each time, so that no model is always served from the slots first."""
    return None if models is None else random.sample(models, len(models))
