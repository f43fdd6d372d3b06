"""The maintenance that any worker does for the fleet: what is due when, and the pruning of the attempt log."""

from __future__ import annotations

import math
import random
from collections.abc import Iterable
from datetime import timedelta

import anyio

from llmqueue.db.store import Store

PROMOTE_S = 0.5
PRUNE_S = 30.0
CALIBRATE_S = 30.0
PRUNE_ATTEMPTS_S = 600.0
PRUNE_ATTEMPTS_STEP = 2000


class MaintenanceSchedule:
    """Steps go out with claims, or in a statement of their own; times are seconds of the caller's clock."""

    def __init__(self, lease_s: float) -> None:
        self._every_s = {
            "heartbeat": lease_s / 5,
            "sweep": lease_s / 5,
            "promote": PROMOTE_S,
            "prune": PRUNE_S,
            "calibrate": CALIBRATE_S,
        }
        self._done_at = dict.fromkeys(self._every_s, -math.inf)

    def due(self, now: float) -> list[str]:
        return [step for step, every_s in self._every_s.items() if now - self._done_at[step] >= every_s]

    def done(self, steps: Iterable[str], now: float) -> None:
        """Call after the statement that carried them has succeeded."""
        self._done_at |= dict.fromkeys(steps, now)

    def since(self, step: str, now: float) -> float:
        """Returns how many seconds ago a step was done last; inf: never."""
        return now - self._done_at[step]


async def prune_attempts(store: Store, keep: timedelta) -> None:
    """Keeps the attempt log as long as LLMQUEUE_KEEP_ATTEMPTS says, in small steps; an outage only delays it."""
    while True:
        await anyio.sleep(random.uniform(0.5, 1.0) * PRUNE_ATTEMPTS_S)
        with store.outage.tolerated():
            pruned = PRUNE_ATTEMPTS_STEP
            while pruned == PRUNE_ATTEMPTS_STEP:
                pruned = await store.prune_attempts(keep, PRUNE_ATTEMPTS_STEP)
