"""Judges calls against a changing limit, by their arrivals in sliding windows of 60 s. Pure functions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

WINDOW_S = 60.0


@dataclass(frozen=True, slots=True)
class Period:
    """A period with one limit, from `start_s` on."""

    start_s: float
    rpm: int


@dataclass(frozen=True, slots=True)
class Window:
    """The 60 s that end with the call at `at_s`: the number of calls, and the limit at their end."""

    at_s: float
    calls: int
    rpm: int

    @property
    def is_over(self) -> bool:
        return self.calls > self.rpm

    @property
    def share(self) -> float:
        return self.calls / self.rpm if self.rpm else float(self.calls)


def change_periods(before_rpm: int, after_rpm: int, begun_s: float, committed_s: float, grace_s: float) -> list[Period]:
    """Returns the limits around a change. For `grace_s` after its COMMIT, calls granted before may still arrive."""
    return [
        Period(float("-inf"), before_rpm),
        Period(begun_s, max(before_rpm, after_rpm)),
        Period(committed_s + grace_s, after_rpm),
    ]


def limit_at(periods: Sequence[Period], at_s: float) -> int:
    """Returns the limit of the last period that has begun at `at_s`; 0 before the first."""
    return next((period.rpm for period in reversed(periods) if period.start_s <= at_s), 0)


def windows(arrivals: Sequence[float], periods: Sequence[Period]) -> list[Window]:
    """Returns for each call the window that ends with it. It is half-open, so a call 60 s earlier is outside."""
    ordered = sorted(arrivals)
    result, start = [], 0
    for end, at_s in enumerate(ordered):
        while ordered[start] <= at_s - WINDOW_S:
            start += 1
        result.append(Window(at_s, end - start + 1, limit_at(periods, at_s)))
    return result


def fullest(found: Sequence[Window]) -> Window | None:
    """Returns the window that comes nearest to its limit or exceeds it most; None if there is no call."""
    return max(found, key=lambda window: window.share, default=None)


def share_used(arrivals: Sequence[float], periods: Sequence[Period], start_s: float, end_s: float) -> float | None:
    """Returns the average share of the limit that windows ending between start_s and end_s hold.

    A window over its limit counts as full, as after a lowered limit. None if the time is empty.
    """
    if end_s <= start_s:
        return None
    enters = [(at_s, 1) for at_s in arrivals]
    leaves = [(at_s + WINDOW_S, -1) for at_s in arrivals]
    marks = [(period.start_s, 0) for period in periods] + [(start_s, 0), (end_s, 0)]
    total, inside = 0.0, 0
    for (at_s, step), (next_s, _) in pairwise(sorted(enters + leaves + marks)):
        inside += step
        if start_s <= at_s < end_s and (rpm := limit_at(periods, at_s)):
            total += min(1.0, inside / rpm) * (next_s - at_s)
    return total / (end_s - start_s)
