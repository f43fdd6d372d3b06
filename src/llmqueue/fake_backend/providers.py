"""Emulators of five kinds of provider limits; each takes arrivals in seconds of a monotonic clock.

    sliding      at most the limit in every sliding minute
    bucket       capacity = limit, refilled continuously, full at the start (OpenAI, Anthropic, Groq)
    minute       counted from 0 in every minute of the provider's clock, with any phase (Azure's tokens)
    ten-seconds  a sixth of the limit in every sliding ten seconds (Azure's calls)
    second       a sixtieth of the limit in every sliding second ("60 RPM might be enforced as 1 RPS")

The last two admit at least one call in their window and judge the sliding minute as well, because a small limit would
be exceeded otherwise. A refused call never counts.
"""

import math
from bisect import bisect_left, bisect_right
from collections import Counter
from collections.abc import Sequence
from typing import Protocol

KINDS = ("sliding", "bucket", "minute", "ten-seconds", "second")
_PRUNE_FROM = 1024  # shorter lists are not worth the copying
_ROUNDING_S = 1e-6  # the error of sums of binary fractions


class Meter(Protocol):
    """Counts calls or tokens against a limit that may change with every call."""

    def wait_s(self, at: float, cost: int, limit: int) -> float:
        """Returns 0 if `cost` fits at that time, else the seconds until it does (one window if it never will)."""
        ...

    def take(self, at: float, cost: int, limit: int | None) -> None:
        """Counts `cost`, even if it does not fit or there is no limit."""
        ...

    def give_back(self, at: float, cost: int, limit: int | None) -> None:
        """Removes `cost` that was counted at that time."""
        ...


class SlidingLog:
    """A strict log: no half-open window of `window_s` holds more than `share` of the limit, which is at least 1."""

    def __init__(self, window_s: float, share: float = 1.0) -> None:
        self._window_s = window_s
        self._share = share
        self._times: list[float] = []
        self._sums: list[int] = []  # sums of the costs up to and including each entry
        self._pruned = 0  # the sum before the first entry

    def wait_s(self, at: float, cost: int, limit: int) -> float:
        room = max(1, math.floor(limit * self._share + _ROUNDING_S)) if limit else 0
        if cost > room:
            return self._window_s
        # A large body is judged after a small one that arrived later. So the count includes all calls since the
        # window's start, later ones too: every window with this call lies within them, so none can overflow.
        start = bisect_right(self._times, at - self._window_s)
        excess = self._total - self._sum_before(start) + cost - room
        if excess <= 0:
            return 0.0
        last_to_leave = bisect_left(self._sums, self._sum_before(start) + excess)
        return self._times[last_to_leave] + self._window_s - at

    def take(self, at: float, cost: int, limit: int | None) -> None:
        position = bisect_right(self._times, at)
        self._times.insert(position, at)
        self._sums.insert(position, self._sum_before(position))
        self._add_from(position, cost)
        self._prune()

    def give_back(self, at: float, cost: int, limit: int | None) -> None:
        self._add_from(bisect_left(self._times, at), -cost)

    @property
    def _total(self) -> int:
        return self._sums[-1] if self._sums else self._pruned

    def _sum_before(self, position: int) -> int:
        return self._sums[position - 1] if position else self._pruned

    def _add_from(self, position: int, cost: int) -> None:
        for later in range(position, len(self._sums)):
            self._sums[later] += cost

    def _prune(self) -> None:
        # Keeps one window more than necessary, for arrivals that are judged late. Prunes half of the list at a time, so
        # that the cost per call is constant.
        outdated = bisect_right(self._times, self._times[-1] - 2 * self._window_s)
        if outdated >= max(_PRUNE_FROM, len(self._times) // 2):
            self._pruned = self._sum_before(outdated)
            del self._times[:outdated], self._sums[:outdated]


class Bucket:
    """A bucket of the size of the limit, refilled evenly within a window; a new limit keeps the filled share."""

    def __init__(self, window_s: float) -> None:
        self._window_s = window_s
        self._full_at = -math.inf  # the whole state: the bucket lacks what flows in until then

    def wait_s(self, at: float, cost: int, limit: int) -> float:
        if cost > limit:
            return self._window_s
        wait_s = self._full_after(at, cost, limit) - at - self._window_s
        return wait_s if wait_s > _ROUNDING_S else 0.0

    def take(self, at: float, cost: int, limit: int | None) -> None:
        if limit:
            self._full_at = self._full_after(at, cost, limit)

    def give_back(self, at: float, cost: int, limit: int | None) -> None:
        if limit:
            self._full_at -= cost * self._window_s / limit

    def _full_after(self, at: float, cost: int, limit: int) -> float:
        return max(self._full_at, at) + cost * self._window_s / limit


class ClockWindow:
    """Counts from 0 in every full minute of the provider's clock, which is `phase_s` behind ours."""

    def __init__(self, window_s: float, phase_s: float = 0.0) -> None:
        self._window_s = window_s
        self._phase_s = phase_s
        self._counts: Counter[int] = Counter()

    def wait_s(self, at: float, cost: int, limit: int) -> float:
        if cost > limit:
            return self._window_s
        number = self._number(at)
        if self._counts[number] + cost <= limit:
            return 0.0
        return (number + 1) * self._window_s + self._phase_s - at

    def take(self, at: float, cost: int, limit: int | None) -> None:
        number = self._number(at)
        self._counts[number] += cost
        for outdated in [earlier for earlier in self._counts if earlier < number - 1]:
            del self._counts[outdated]

    def give_back(self, at: float, cost: int, limit: int | None) -> None:
        self._counts[self._number(at)] -= cost

    def _number(self, at: float) -> int:
        return math.floor((at - self._phase_s) / self._window_s)


def _call_meters(kind: str, window_s: float, phase_s: float) -> tuple[Meter, ...]:
    match kind:
        case "sliding":
            return (SlidingLog(window_s),)
        case "bucket":
            return (Bucket(window_s),)
        case "minute":
            return (ClockWindow(window_s, phase_s),)
        case "ten-seconds":  # scales with `window_s`, which tests shorten
            return (SlidingLog(window_s / 6, 1 / 6), SlidingLog(window_s))
        case "second":
            return (SlidingLog(window_s / 60, 1 / 60), SlidingLog(window_s))
    raise ValueError(f"there is no provider {kind!r}; known are {', '.join(KINDS)}")


def _token_meter(kind: str, window_s: float, phase_s: float) -> Meter:
    # No provider judges tokens by less than a minute: a long prompt would never be admitted.
    return _call_meters(kind, window_s, phase_s)[-1]


class Provider:
    """The limits of one model, judged like that kind of provider; None: no limit. Limits may change at any time."""

    def __init__(
        self,
        kind: str,
        limit: int | None,
        *,
        token_limit: int | None = None,
        window_s: float = 60.0,
        phase_s: float = 0.0,
    ) -> None:
        self.limit = limit
        self.token_limit = token_limit
        self._calls = _call_meters(kind, window_s, phase_s)
        self._tokens = _token_meter(kind, window_s, phase_s)

    def admit(self, at: float, tokens: int = 0) -> float | None:
        """Counts the call and returns None, or returns the seconds until it would be admitted."""
        waits = [meter.wait_s(at, 1, self.limit) for meter in self._calls if self.limit is not None]
        if self.token_limit is not None:
            waits.append(self._tokens.wait_s(at, tokens, self.token_limit))
        if wait_s := max(waits, default=0.0):
            return wait_s
        for meter in self._calls:
            meter.take(at, 1, self.limit)
        if tokens:
            self._tokens.take(at, tokens, self.token_limit)
        return None

    def withdraw(self, at: float, tokens: int = 0) -> None:
        """Removes an admitted call."""
        for meter in self._calls:
            meter.give_back(at, 1, self.limit)
        if tokens:
            self._tokens.give_back(at, tokens, self.token_limit)


def rejections(kind: str, arrivals: Sequence[float], limit: int, window_s: float = 60.0, phase_s: float = 0.0) -> int:
    """Returns how many of these arrivals (seconds, in any order) a provider of that kind would have refused."""
    if not arrivals:
        return 0
    first = min(arrivals)  # subtracted, because seconds since 1970 leave too few digits for the bucket's sums
    provider = Provider(kind, limit, window_s=window_s, phase_s=phase_s - first)
    return sum(provider.admit(at - first) is not None for at in sorted(arrivals))
