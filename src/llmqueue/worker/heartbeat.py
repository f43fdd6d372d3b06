"""Liveness: one heartbeat row per worker, renewed several times in a lease (design I9).

Heartbeats and maintenance go out with the claimer's claims; this loop steps in when no claim has gone out for a while,
so a worker whose slots are all taken by slow calls stays alive too.
"""

from __future__ import annotations

import random
import time
from collections.abc import Iterable, Sequence

import anyio

from llmqueue import __version__
from llmqueue.db.store import STATEMENT_TIMEOUT_S, Store
from llmqueue.errors import UnknownWorker
from llmqueue.logs import Event, logger
from llmqueue.spill.pending import PendingSettlements
from llmqueue.worker.in_flight import InFlight
from llmqueue.worker.maintenance import MaintenanceSchedule

SWEPT = "registering again; answers under way are still accepted"


class Heartbeat:
    """Tells the database that the worker lives, and knows which maintenance is due.

    While answers of attempts that may look lost wait to be settled, in `pending` or in the spill of a former worker,
    nobody's attempts are swept from here (I9).
    """

    def __init__(
        self,
        store: Store,
        in_flight: InFlight,
        pending: PendingSettlements,
        *,
        name: str,
        models: Sequence[str] | None,
        lease_s: float,
        guard_s: float,
    ) -> None:
        self._store = store
        self._in_flight = in_flight
        self._pending = pending
        self._name = name
        self._models = models
        self._lease_s = lease_s
        self._guard_s = guard_s
        self._schedule = MaintenanceSchedule(lease_s)
        self._awaits_spills = True
        self.registrations = 0
        """What the database knows of a worker goes with its row: see the claimer."""

    async def register(self) -> None:
        await self._store.register(self._name, __version__, self._models, self._lease_s, self._guard_s)
        self.registrations += 1
        self.done(["heartbeat"])

    def spills_are_sent(self) -> None:
        """What former workers left in the spill folder has been sent once."""
        self._awaits_spills = False

    def due(self) -> list[str]:
        """Returns the maintenance that is due."""
        due = self._schedule.due(time.monotonic())
        may_sweep = not self._awaits_spills and not self._pending.is_behind
        return due if may_sweep else [step for step in due if step != "sweep"]

    def done(self, steps: Iterable[str]) -> None:
        """Call after the statement that carried them has succeeded."""
        self._schedule.done(steps, time.monotonic())

    async def run(self) -> None:
        """Beats for ever when the claimer has not for a quarter of the lease; re-registers when swept."""
        while True:
            await anyio.sleep(random.uniform(0.8, 1.0) * self._lease_s / 20)
            if self._schedule.since("heartbeat", time.monotonic()) < self._lease_s / 4:
                continue
            with self._store.outage.tolerated():
                await self.beat()

    async def beat(self) -> None:
        """Says that the worker lives; registers it if it was swept, or has not been yet."""
        try:
            # a half-open connection must leave time for another within the lease
            timeout_s = min(self._lease_s / 5, STATEMENT_TIMEOUT_S)
            await self._store.heartbeat(self._in_flight.calls, timeout_s=timeout_s)
            self.done(["heartbeat"])
        except UnknownWorker:
            if self.registrations:
                logger().warning(Event.WORKER_SWEPT, effect=SWEPT)
            await self.register()
