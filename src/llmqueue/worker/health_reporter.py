"""Tells the database what keeps this worker from the backend, and which failures turned out to be the backend's.

`llmqueue status` and `llmqueue why` show the former. The latter get their attempts back: these were counted before
enough calls had failed to know better (design I11). While the database is away both wait.
"""

from __future__ import annotations

import math
import time

import anyio

from llmqueue.backend.health import BackendHealth
from llmqueue.db.store import Store

LOOK_S = 0.2
# Reported again that often while there is trouble: a worker that was swept meanwhile has a new row.
AGAIN_S = 10.0


class HealthReporter:
    """One per worker."""

    def __init__(self, store: Store, health: BackendHealth) -> None:
        self._store = store
        self._health = health
        self._reported: str | None = None
        self._reported_at = -math.inf
        self._restorable: list[int] = []

    async def run(self) -> None:
        """Never returns. Looking costs nothing: the database is asked only when there is something to report."""
        while True:
            await anyio.sleep(LOOK_S)
            with self._store.outage.tolerated() as tolerated:
                await self.look()
            if tolerated.error is not None:
                await anyio.sleep(1.0)

    async def look(self) -> None:
        self._restorable += self._health.breaker.take_restorable()
        if self._restorable:
            self._restorable = await self._store.restore_attempts(self._restorable)
        trouble, now = self._health.trouble, time.monotonic()
        what = None if trouble is None else trouble.what
        if what == self._reported and (what is None or now - self._reported_at < AGAIN_S):
            return
        await self._store.report_backend(what, 0.0 if trouble is None else now - trouble.since)
        self._reported, self._reported_at = what, now
