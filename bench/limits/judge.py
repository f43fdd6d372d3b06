"""Judges arrivals as a provider sees them, without knowing who sent them or why."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from llmqueue.demo.windows import WINDOW_S, Period, fullest, share_used, windows
from llmqueue.fake_backend.providers import KINDS, rejections

PHASES = tuple(range(60))


@dataclass(frozen=True, slots=True)
class Verdict:
    """The verdict on one model's arrivals.

    `use` is the mean over all full windows, `worst` the most calls in one, `over` the number of windows above the limit
    (one window ends with each call), `refused` the number of calls that each provider emulator would have refused.
    """

    rpm: int
    calls: int
    use: float
    worst: int
    over: int
    refused: Mapping[str, int]


def judge(arrivals: Sequence[float], rpm: int, end_s: float, phases: Sequence[int] = PHASES) -> Verdict:
    """Judges all arrivals (seconds) up to `end_s`, when there was still backlog.

    The minute of the provider's clock is judged at each phase, and the worst phase counts, because a provider's clock
    is unknown.
    """
    ordered = sorted(at_s for at_s in arrivals if at_s <= end_s)
    if not ordered:
        return Verdict(rpm, 0, 0.0, 0, 0, dict.fromkeys(KINDS, 0))
    periods = [Period(float("-inf"), rpm)]
    found = windows(ordered, periods)
    worst = fullest(found)
    refused = {kind: rejections(kind, ordered, rpm) for kind in KINDS if kind != "minute"}
    refused["minute"] = max(rejections("minute", ordered, rpm, phase_s=float(phase)) for phase in phases)
    return Verdict(
        rpm=rpm,
        calls=len(ordered),
        use=share_used(ordered, periods, ordered[0] + WINDOW_S, end_s) or 0.0,
        worst=worst.calls if worst else 0,
        over=sum(window.is_over for window in found),
        refused=refused,
    )


def trailing(arrivals: Sequence[float], every_s: float, end_s: float) -> list[tuple[float, int]]:
    """Returns the points of a curve: the number of calls in the 60 s before each moment."""
    ordered = sorted(arrivals)
    points, first, last = [], 0, 0
    for step in range(int(end_s / every_s) + 1):
        at_s = step * every_s
        while last < len(ordered) and ordered[last] <= at_s:
            last += 1
        while first < last and ordered[first] <= at_s - WINDOW_S:
            first += 1
        points.append((at_s, last - first))
    return points
