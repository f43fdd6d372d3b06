"""Watches the database's clock against our own, which never steps (design I7).

A step forward makes calls of the last minute look older than they are: the ledger would forget them too early. The
claim that shows it is given back unsent, and no model is granted a call for one window. The ledger itself copes with
steps back.
"""

from __future__ import annotations

from llmqueue.db.store import Store
from llmqueue.logs import Event, logger

STEP_S = 0.25


class ClockWatch:
    """Remembers by how much the database's clock was ahead of ours at the most."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._latest_s: float | None = None

    async def has_stepped(self, offset_s: tuple[float, float]) -> bool:
        """Takes the least and the most by which the database's clock is ahead of ours; returns whether it jumped."""
        least_s, most_s = offset_s
        step_s = 0.0 if self._latest_s is None else least_s - self._latest_s
        if step_s <= STEP_S:
            # Narrow what is known, so that a slow round trip does not hide a step, and follow a clock that drifts.
            self._latest_s = most_s if self._latest_s is None else min(most_s, max(self._latest_s, least_s))
            return False
        logger().error(Event.CLOCK_STEP, seconds=round(step_s, 3), effect="no model is granted a call for one window")
        await self._store.clock_stepped()
        self._latest_s = most_s
        return True
