"""Liveness: one heartbeat row per worker, and the chores that any worker does for the fleet (design I9).

They ride along with the claimer's claims; this loop steps in when no claim has gone out for a while, so a worker
whose slots are all taken by slow calls stays alive too.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence

import anyio

from llmqueue import __version__
from llmqueue.db.store import STATEMENT_TIMEOUT_S, Store
from llmqueue.errors import DatabaseUnreachable, SqlError, UnknownWorker
from llmqueue.logs import Event, logger

PROMOTE_S = 0.5
PRUNE_S = 30.0
CALIBRATE_S = 30.0
SWEPT = "registering again; answers under way are still accepted"


class Heartbeat:
    """Knows what is due when, and that the worker lives."""

    def __init__(self, store: Store, name: str, models: Sequence[str] | None, lease_s: float, guard_s: float) -> None:
        self._store = store
        self._name = name
        self._models = models
        self._lease_s = lease_s
        self._guard_s = guard_s
        self._done_at: dict[str, float] = {}
        self.registrations = 0  # what the database knew of a worker goes with its row: see the claimer
        # While answers of attempts that may look lost wait to be settled, nobody's attempts are swept from here (I9).
        self.may_sweep: Callable[[], bool] = lambda: True
        self._every_s = {
            "heartbeat": lease_s / 5,
            "sweep": lease_s / 5,
            "promote": PROMOTE_S,
            "prune": PRUNE_S,
            "calibrate": CALIBRATE_S,
        }

    async def register(self) -> None:
        await self._store.register(self._name, __version__, self._models, self._lease_s, self._guard_s)
        self.registrations += 1
        self.done(["heartbeat"])

    @property
    def is_due(self) -> bool:
        return time.monotonic() - self._done_at.get("heartbeat", 0.0) >= self._every_s["heartbeat"]

    def due_chores(self) -> list[str]:
        now = time.monotonic()
        due = [chore for chore, every_s in self._every_s.items() if now - self._done_at.get(chore, 0.0) >= every_s]
        return due if self.may_sweep() else [chore for chore in due if chore != "sweep"]

    def done(self, chores: Sequence[str]) -> None:
        """Call after the statement that carried them has succeeded."""
        self._done_at |= dict.fromkeys(chores, time.monotonic())

    async def run(self, running: Callable[[], int]) -> None:
        """Beats for ever when the claimer has not for a quarter of the lease; re-registers when swept."""
        while True:
            await anyio.sleep(random.uniform(0.8, 1.0) * self._lease_s / 20)
            if time.monotonic() - self._done_at.get("heartbeat", 0.0) < self._lease_s / 4:
                continue
            try:
                await self.beat(running())
            except (DatabaseUnreachable, SqlError) as error:
                self._store.outage.began(error)

    async def beat(self, running: int) -> None:
        """Says that the worker lives; registers it if it was swept, or has not been yet."""
        try:
            # a half-open connection must leave time for another within the lease
            await self._store.heartbeat(running, timeout_s=min(self._lease_s / 5, STATEMENT_TIMEOUT_S))
            self.done(["heartbeat"])
        except UnknownWorker:
            if self.registrations:
                logger().warning(Event.WORKER_SWEPT, effect=SWEPT)
            await self.register()
