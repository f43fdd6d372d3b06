"""The limits of the simulated backend: a provider emulator judges the calls of each model."""

import math
from collections.abc import Mapping

from llmqueue.fake_backend.providers import Provider


class RateLimits:
    """Limits in calls per window (a minute by default); a model without a limit admits every call.

    Arrivals are seconds of the monotonic clock. Calls count even while there is no limit, so that a new limit applies
    at once to the window that is already running (except for a bucket, which is full then).
    """

    def __init__(self, rpm: Mapping[str, int | None], window_s: float = 60.0, provider: str = "sliding") -> None:
        self.rpm: dict[str, int | None] = dict(rpm)
        self._window_s = window_s
        self._kind = provider
        self._providers: dict[str, Provider] = {}

    def admit(self, model: str, arrived: float) -> int | None:
        """Counts the call and returns None, or returns the whole seconds until one is admitted again."""
        wait_s = self._provider(model).admit(arrived)
        return None if wait_s is None else max(1, math.ceil(wait_s))

    def withdraw(self, model: str, arrived: float) -> None:
        """Removes an admitted call: a call that gets a 429 for another reason does not count."""
        self._provider(model).withdraw(arrived)

    def _provider(self, model: str) -> Provider:
        provider = self._providers.get(model)
        if provider is None:
            provider = self._providers[model] = Provider(self._kind, None, window_s=self._window_s)
        provider.limit = self.rpm.get(model)
        return provider
