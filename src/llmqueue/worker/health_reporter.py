"""Tells the database what keeps this worker from the backend, and which failures turned out to be the backend's.

`llmqueue status` and `llmqueue why` show the former. The latter get their attempts back: they were counted before
enough calls had failed to know better (design I11). While the database is away both wait.
"""

from __future__ import annotations

import math
import time

import anyio

from llmqueue.backend.health import BackendHealth
from llmqueue.db.store import Store
from llmqueue.errors import DatabaseUnreachable, SqlError

LOOK_S = 0.2
# Said again that often while there is trouble: a worker that was swept meanwhile has a new row.
AGAIN_S = 10.0


class HealthReporter:
    """One per worker."""

    def __init__(self, store: Store, gate: BackendHealth) -> None:
        self._store = store
        self._health = gate
        self._said: str | None = None
        self._said_at = -math.inf
        self._fences: list[int] = []

    async def run(self) -> None:
        """Never returns. Looking costs nothing: the database is asked only when there is something to say."""
        while True:
            await anyio.sleep(LOOK_S)
            try:
                await self.look()
            except (DatabaseUnreachable, SqlError) as error:
                self._store.outage.began(error)
                await anyio.sleep(1.0)

    async def look(self) -> None:
        self._fences += self._health.circuit.take_forgiven()
        if self._fences:
            self._fences = await self._store.forgive(self._fences)
        trouble, now = self._health.trouble, time.monotonic()
        what = None if trouble is None else trouble.what
        if what == self._said and (what is None or now - self._said_at < AGAIN_S):
            return
        await self._store.note_backend(what, 0.0 if trouble is None else now - trouble.since)
        self._said, self._said_at = what, now
