"""The backend's own limit: so many calls per model in every sliding window, judged by their arrivals."""

import math
from bisect import bisect_right, insort
from collections import defaultdict
from collections.abc import Mapping

_PRUNE_FROM = 1024  # below that a list is not worth the copying


class RateLimits:
    """Strict limits in calls per window (a minute by default); a model without a limit takes every call.

    Arrivals are seconds of the monotonic clock. Admitted ones are kept while there is no limit too, so that a
    limit set live holds at once for the window that is already running.
    """

    def __init__(self, rpm: Mapping[str, int | None], window_s: float = 60.0) -> None:
        self.rpm: dict[str, int | None] = dict(rpm)
        self._window_s = window_s
        self._admitted: defaultdict[str, list[float]] = defaultdict(list)

    def admit(self, model: str, arrived: float) -> int | None:
        """Counts the call in, or returns the whole seconds after which one is admitted again."""
        admitted = self._admitted[model]
        # A large body is judged after a small one that arrived later. All calls since the window's start are
        # counted, later ones too: every window with this call in it lies within them, so none can overflow.
        start = bisect_right(admitted, arrived - self._window_s)
        rpm = self.rpm.get(model)
        if rpm is not None and len(admitted) - start >= rpm:
            return self._retry_after_s(admitted, rpm, arrived)
        insort(admitted, arrived)
        self._prune(admitted)
        return None

    def withdraw(self, model: str, arrived: float) -> None:
        """Takes an admitted call out again: one refused with 429 for another reason does not count."""
        self._admitted[model].remove(arrived)

    def _retry_after_s(self, admitted: list[float], rpm: int, arrived: float) -> int:
        if rpm == 0:
            return max(1, math.ceil(self._window_s))
        return max(1, math.ceil(admitted[-rpm] + self._window_s - arrived))

    def _prune(self, admitted: list[float]) -> None:
        # One window more than is needed, for arrivals judged late; half of the list at a time, so that the
        # cost per call is constant.
        outdated = bisect_right(admitted, admitted[-1] - 2 * self._window_s)
        if outdated >= max(_PRUNE_FROM, len(admitted) // 2):
            del admitted[:outdated]
