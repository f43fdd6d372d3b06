"""A worker on a clock that the test controls: it claims when the last refusal allows, and the test ends its calls."""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from itertools import count

from tests.support.sql import Claimed, Grant, Queue, complete, retry

POLL_S = 1.0
MAX_CLAIM = 200  # a worker claims no more than it can send in a quarter of a second
TICK = timedelta(microseconds=1)


def answered(grant: Grant, input_tokens: int | None, output_tokens: int | None, **more: object) -> dict[str, object]:
    """Returns the end of a completed call, with the usage that the backend reports."""
    return {**complete(grant), "input_tokens": input_tokens, "output_tokens": output_tokens, **more}


def refused(grant: Grant, refusal: str = "quota", pause_s: float | None = None) -> dict[str, object]:
    """Returns the end of a call that the model refused: 'quota' is a 429, 'capacity' a 503 or 529."""
    error_class = {"quota": "rate_limited", "capacity": "overloaded"}[refusal]
    cause = {"error_class": error_class, "error": "no more"}
    return retry(grant, delay_s=0, counts=False, refusal=refusal, pause_s=pause_s, **cause)


@dataclass
class Flow:
    """Runs one worker of a queue. `latency_s` is the duration of a call (inf: for ever). Times are since the start."""

    queue: Queue
    latency_s: Callable[[Grant], float] = lambda _: math.inf
    slots: int = MAX_CLAIM
    hot_slots: int = 0
    models: Sequence[str] | None = None
    maintenance: Sequence[str] = ()
    settle: Callable[[Grant], dict[str, object]] = complete
    on_claim: Callable[[Claimed], None] = lambda _: None
    grants: list[tuple[float, Grant]] = field(default_factory=list)
    claims: int = 0
    now_s: float = 0.0

    def __post_init__(self) -> None:
        assert self.queue.now is not None
        self._start: datetime = self.queue.now
        self._number = count()
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._ask_at: dict[str, float] = {}
        self._polled_at = -math.inf

    def at(self, at_s: float, action: Callable[[], None]) -> None:
        heapq.heappush(self._events, (at_s, next(self._number), action))

    def wake(self) -> None:
        """Lets the worker ask all models now, as after a NOTIFY."""
        self._polled_at = -math.inf

    def run(self, until_s: float) -> None:
        while (next_s := self._next_s()) <= until_s:
            self._go_to(next_s)
            while self._events and self._events[0][0] <= self.now_s:
                heapq.heappop(self._events)[2]()
            self._claim()
        self._go_to(until_s)

    def _next_s(self) -> float:
        event_s = self._events[0][0] if self._events else math.inf
        return max(self.now_s, min(event_s, self._polled_at + POLL_S, min(self._ask_at.values(), default=math.inf)))

    def _go_to(self, at_s: float) -> None:
        self.now_s = at_s
        self.queue.now = self._start + timedelta(seconds=at_s) + TICK  # a float must not come too early

    def _claim(self) -> None:
        is_poll = self.now_s >= self._polled_at + POLL_S
        due = [model for model, at_s in self._ask_at.items() if at_s <= self.now_s]
        if not is_poll and not due:
            return
        if is_poll:
            self._polled_at = self.now_s
        claimed = self.queue.claim(
            self.slots, self.models if is_poll else due, hot_slots=self.hot_slots, maintenance=self.maintenance
        )
        self.claims += 1
        for model, reason in claimed.reasons.items():
            again_in_s = claimed.retry_in_s[model]
            if reason is None:
                again_in_s = 0.0 if claimed.grants else None
            self._ask_at[model] = math.inf if again_in_s is None else self.now_s + again_in_s
        for grant in claimed.grants:
            self.grants.append((self.now_s, grant))
            latency_s = self.latency_s(grant)
            if latency_s < math.inf:
                self.at(self.now_s + latency_s, lambda grant=grant: self._end(grant))  # type: ignore[misc]
        self.on_claim(claimed)

    def _end(self, grant: Grant) -> None:
        self.queue.settle(self.settle(grant), worker=grant.worker)
        if math.isinf(self._ask_at.get(grant.model, math.inf)):
            self._ask_at[grant.model] = self.now_s
