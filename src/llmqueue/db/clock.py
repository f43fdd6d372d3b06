"""Compares the database's clock with the worker's monotonic clock, which never steps (design I7).

After a step forward the calls of the last minute look older than they are, so the ledger would forget them too early.
The tasks of the claim that shows the step are returned unsent, and no model is called for one window. The ledger itself
handles steps back.
"""

from __future__ import annotations

from llmqueue.db.store import Store
from llmqueue.logs import Event, logger

STEP_S = 0.25


class ClockWatch:
    """Remembers the largest lead of the database's clock over ours."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._latest_s: float | None = None

    async def has_stepped(self, offset_s: tuple[float, float]) -> bool:
        """Returns whether the database's clock jumped ahead; `offset_s`: least and greatest lead of it over ours."""
        least_s, most_s = offset_s
        step_s = 0.0 if self._latest_s is None else least_s - self._latest_s
        if step_s <= STEP_S:
            # Narrow the range, so that a slow round trip does not hide a step, and follow a clock that drifts.
            self._latest_s = most_s if self._latest_s is None else min(most_s, max(self._latest_s, least_s))
            return False
        logger().error(Event.CLOCK_STEP, seconds=round(step_s, 3), effect="no model is called for one window")
        await self._store.clock_stepped()
        self._latest_s = most_s
        return True
