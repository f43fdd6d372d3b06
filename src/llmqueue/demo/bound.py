"""The least time that quotas allow, which a scheduler without any loss would need. Pure functions.

Two bounds. In bursts: every quota is spent at once when a window opens. No bucket admits that, but no schedule is
faster. At an even pace: every model receives rpm / 60 calls per second all the time.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from llmqueue.demo.windows import WINDOW_S, Period, limit_at

# Sums of a start and several windows differ in their last binary digits.
_EXACT_S = 1e-6


def most_calls(periods: Sequence[Period], at_s: float) -> int:
    """Returns the largest number of calls that can have been sent from 0 to `at_s`, inclusive, within the limits.

    Sending as early as possible is optimal: at any time the sum may rise to the sum of 60 s ago plus the limit. So new
    calls are possible only when the limit changes, and at multiples of 60 s after that.
    """
    sent: dict[float, int] = {}
    for moment in _moments([periods], at_s):
        before = max((count for time_s, count in sent.items() if time_s <= moment - WINDOW_S + _EXACT_S), default=0)
        sent[moment] = max([*sent.values(), before + limit_at(periods, moment)])
    return max(sent.values(), default=0)


def least_time_s(models: Sequence[Sequence[Period]], calls: int) -> float:
    """Returns the earliest time at which all `calls` can have been sent, each to any model; inf: never."""
    if not any(limit_at(periods, math.inf) for periods in models):
        return 0.0 if calls <= 0 else math.inf
    horizon_s = WINDOW_S
    while True:
        for moment in _moments(models, horizon_s):
            if sum(most_calls(periods, moment) for periods in models) >= calls:
                return moment
        horizon_s *= 2


def even_time_s(models: Sequence[Sequence[Period]], calls: int) -> float:
    """Returns the time at which `calls` are sent if every model always receives exactly its limit; inf: never."""
    left = float(calls)
    changes = sorted({period.start_s for periods in models for period in periods if period.start_s > 0})
    for start_s, end_s in zip([0.0, *changes], [*changes, math.inf], strict=True):
        rate = sum(limit_at(periods, start_s) for periods in models) / WINDOW_S
        if rate * (end_s - start_s) >= left and rate > 0:
            return start_s + left / rate
        left -= rate * (end_s - start_s) if rate else 0.0
    return math.inf


def _moments(models: Iterable[Sequence[Period]], until_s: float) -> list[float]:
    """Returns the times until `until_s` at which new calls can become possible: each change, and 60, 120 … s later."""
    starts = {max(0.0, period.start_s) for periods in models for period in periods} | {0.0}
    return sorted(
        start + WINDOW_S * n
        for start in starts
        if start <= until_s
        for n in range(int((until_s - start) // WINDOW_S) + 1)
    )
