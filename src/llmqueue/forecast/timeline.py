"""Simulated time: what is to happen when, in order, as fast as it can be worked off."""

from __future__ import annotations

import heapq
from collections.abc import Callable
from itertools import count

Action = Callable[[], None]


class Timeline:
    """`now` is the time of the event that happens, in seconds since the start."""

    def __init__(self) -> None:
        self.now = 0.0
        self._events: list[tuple[float, int, Action]] = []
        self._numbers = count()

    def at(self, at_s: float, action: Action) -> None:
        """Plans an event; one in the past happens next. Events of the same time happen in the order of planning."""
        heapq.heappush(self._events, (max(at_s, self.now), next(self._numbers), action))

    def step(self, until_s: float) -> bool:
        """Lets the next event happen. Returns False, at the time `until_s`, when there is none before then."""
        if not self._events or self._events[0][0] >= until_s:
            self.now = until_s
            return False
        self.now, _, action = heapq.heappop(self._events)
        action()
        return True
