"""Other limiters, implemented as documented. Each takes one call at a time and returns the time to wait, 0 for none.

The limit is R calls per minute; `now` is seconds of the limiter's own clock, whose minutes begin at multiples of 60.
They do not know where their state is kept (in Redis, in a process): discrete.py decides which processes share one.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

WINDOW_S = 60.0


class Limiter(Protocol):
    def acquire(self, now: float) -> float:
        """Counts a call and returns 0, or returns the seconds until the next try makes sense."""
        ...


class FixedMinute:
    """A counter per minute of the clock, such as Redis INCR on a key with the minute in it."""

    def __init__(self, limit: float) -> None:
        self._limit = limit
        self._minute = -1
        self._count = 0

    def acquire(self, now: float) -> float:
        minute = int(now // WINDOW_S)
        if minute != self._minute:
            self._minute, self._count = minute, 0
        if self._count >= self._limit:
            return (minute + 1) * WINDOW_S - now
        self._count += 1
        return 0.0


class AnchoredWindow:
    """A counter that begins with the first call and expires a minute later."""

    def __init__(self, limit: float) -> None:
        self._limit = limit
        self._ends_at = 0.0
        self._count = 0

    def acquire(self, now: float) -> float:
        if now >= self._ends_at:
            self._ends_at, self._count = now + WINDOW_S, 0
        if self._count >= self._limit:
            return self._ends_at - now
        self._count += 1
        return 0.0


class TokenBucket:
    """A bucket that is full at the start and refilled evenly."""

    def __init__(self, capacity: float, limit: float) -> None:
        self._capacity = capacity
        self._rate = limit / WINDOW_S
        self._level = capacity
        self._at = 0.0

    def acquire(self, now: float) -> float:
        self._level = min(self._capacity, self._level + (now - self._at) * self._rate)
        self._at = now
        if self._level >= 1 - 1e-9:
            self._level -= 1
            return 0.0
        return (1 - self._level) / self._rate


class SlidingCounter:
    """This minute's count plus the last minute's, weighted by the share of it within the last 60 s."""

    def __init__(self, limit: float) -> None:
        self._limit = limit
        self._minute = 0
        self._count = 0
        self._before = 0

    def acquire(self, now: float) -> float:
        minute = int(now // WINDOW_S)
        if minute != self._minute:
            self._before = self._count if minute == self._minute + 1 else 0
            self._minute, self._count = minute, 0
        gone = now / WINDOW_S - minute
        if self._before * (1 - gone) + self._count + 1 <= self._limit + 1e-9:
            self._count += 1
            return 0.0
        if self._before and self._count + 1 <= self._limit:
            return max(1e-3, (1 - (self._limit - 1 - self._count) / self._before - gone) * WINDOW_S)
        return (1 - gone) * WINDOW_S


class SlidingLog:
    """The times of the calls of the last 60 s."""

    def __init__(self, limit: float) -> None:
        self._limit = limit
        self._times: deque[float] = deque()

    def acquire(self, now: float) -> float:
        while self._times and self._times[0] <= now - WINDOW_S:
            self._times.popleft()
        if len(self._times) >= self._limit:
            return self._times[0] + WINDOW_S - now
        self._times.append(now)
        return 0.0


@dataclass(frozen=True, slots=True)
class Algorithm:
    """`make(rpm, processes)` creates a limiter; with `is_shared` the processes share one, else each has its own."""

    name: str
    known_from: str
    make: Callable[[int, int], Limiter]
    is_shared: bool = True


OTHERS: Sequence[Algorithm] = (
    Algorithm("fixed minute of the clock", "LiteLLM router, envoyproxy/ratelimit", lambda rpm, _: FixedMinute(rpm)),
    Algorithm("fixed window from the first hit", "LiteLLM v3 keys, Hatchet", lambda rpm, _: AnchoredWindow(rpm)),
    Algorithm("token bucket of R", "Portkey, aiolimiter, OpenAI cookbook", lambda rpm, _: TokenBucket(rpm, rpm)),
    Algorithm("token bucket of 1 (GCRA)", "redis-cell without burst", lambda rpm, _: TokenBucket(1, rpm)),
    Algorithm("sliding window counter", "Kong, limits", lambda rpm, _: SlidingCounter(rpm)),
    Algorithm("sliding log of 60.00 s", "PyrateLimiter, limits", lambda rpm, _: SlidingLog(rpm)),
    Algorithm("bucket per process, R each", "aiolimiter in 4 processes", lambda rpm, _: TokenBucket(rpm, rpm), False),
    Algorithm(
        "bucket per process, R/4 each",
        "aiolimiter in 4 processes",
        lambda rpm, processes: TokenBucket(rpm / processes, rpm / processes),
        False,
    ),
)
