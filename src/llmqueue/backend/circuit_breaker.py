"""Decides what a run of failed calls means: is it the backend, one model, or each attempt by itself (design I11)?

It knows neither a clock nor the network: the caller says the time (seconds of time.monotonic()). It judges the calls of
one process. Each worker reaches the backend in its own way, and to find out what another has found costs ten failures.
"""

from __future__ import annotations

import math
import random
from collections import deque
from dataclasses import dataclass, field
from typing import Literal

# Half of the last 20 calls.
WINDOW = 20
HALF = WINDOW // 2
# Between two probes while the backend fails. The longest pause is how late its return may be noticed.
PAUSE_S = (1.0, 30.0)
# A probe may be a call of two minutes: after that long without an end it lets another go.
PROBE_S = 10.0
# Another model's answer shows for that long that the backend works.
FRESH_S = 60.0
# A model in cooldown for its failures counts as broken for that long: twice the longest pause between two probes.
BROKEN_S = 600.0

# Whose fault a failed call is, seen beside the other calls; a part of classify.Blame.
FailureBlame = Literal["attempt", "model", "backend"]


@dataclass(frozen=True, slots=True)
class Failed:
    """A call that failed with a 5xx or a lost connection; `granted_at` is when its claim was made.

    `others` are the fences of the other tasks in it: it is one failure, and all of them get their attempt back.
    """

    model: str
    fence: int
    granted_at: float
    error_class: str
    others: tuple[int, ...] = ()


@dataclass(slots=True)
class _Calls:
    """The last calls; None is one that succeeded."""

    last: deque[Failed | None] = field(default_factory=lambda: deque(maxlen=WINDOW))

    @property
    def failures(self) -> list[Failed]:
        return [call for call in self.last if call is not None]


@dataclass(slots=True)
class _HalfOpen:
    """Probes go out while it is not known whether the backend is back: `most` at once, twice that per success.

    `begun` is a list of fences beside worker/in_flight.py on purpose: a call becomes a probe by when it began, stops
    being one after PROBE_S whatever its task does, and the list is empty but for these moments.
    """

    most: int = 1
    begun: dict[int, float] = field(default_factory=dict)
    good: int = 0
    bad: int = 0

    def calls_left(self, now: float) -> int:
        return max(0, self.most - sum(now - begun_at < PROBE_S for begun_at in self.begun.values()))


class CircuitBreaker:
    """Closed: calls go out. Open: none until the pause is over. Half-open: 1, 2, 4 … probes, until it closes.

    Ten minutes of 502 must bury no backlog. So a failure while the breaker is not closed is the backend's fault, and so
    are the failures that opened it: their attempts were counted, and take_restorable() names them.
    """

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng
        self._calls = _Calls()
        self._of_model: dict[str, _Calls] = {}
        self._good_at: dict[str, float] = {}
        self._broken: dict[str, float] = {}  # models in cooldown that have not answered since; the last failure
        self._opened_at: float | None = None
        self._open_until: float | None = None
        self._half_open: _HalfOpen | None = None
        self._pause_s = PAUSE_S[0]
        self._restorable: list[int] = []
        self.reason: str | None = None
        """The class of the failure that opened it, until it closes."""

    @property
    def is_closed(self) -> bool:
        return self._open_until is None and self._half_open is None

    def calls_left(self, now: float) -> int | None:
        """Returns how many more calls may go out now; None: the breaker sets no limit."""
        if self._open_until is not None:
            if now < self._open_until:
                return 0
            self._open_until, self._half_open = None, _HalfOpen()
        return None if self._half_open is None else self._half_open.calls_left(now)

    def begin_slowly(self) -> None:
        """Becomes half-open, as after an outage: the backend may have come back for a moment only."""
        if self.is_closed:
            self._half_open = _HalfOpen()

    def started(self, fence: int, now: float) -> None:
        if self._half_open is not None:
            self._half_open.begun[fence] = now

    def ended(self, fence: int) -> None:
        """Call at the end of every attempt, whatever came of it: a probe that showed nothing lets another go."""
        if self._half_open is not None:
            self._half_open.begun.pop(fence, None)

    def succeeded(self, model: str, fence: int, now: float) -> None:
        """Any reply that is not a failure: the backend works."""
        self._good_at[model] = now
        self._broken.pop(model, None)
        self._calls.last.append(None)
        self._of_model.setdefault(model, _Calls()).last.append(None)
        if self._half_open is not None and fence in self._half_open.begun:
            self._half_open.good += 1
            self._half_open.most *= 2
            if self._half_open.most >= WINDOW:
                self._close()

    def failed(self, call: Failed, now: float) -> FailureBlame:
        """Returns whose fault it is. With the tenth failure of 20 calls it opens, or a model is to have a cooldown."""
        if not self.is_closed:
            return self._failed_meanwhile(call, now)
        if self._opened_at is not None and call.granted_at <= self._opened_at:
            return "backend"  # was under way when the breaker opened, and ends only now
        if now - self._broken.get(call.model, -math.inf) < BROKEN_S:
            self._broken[call.model] = now
            return "model"
        self._calls.last.append(call)
        of_model = self._of_model.setdefault(call.model, _Calls())
        of_model.last.append(call)
        if len(of_model.failures) >= HALF and self._others_work(call.model, now):
            self._give_up_model(call, now)
            return "model"
        if len(self._calls.failures) >= HALF:
            self._restore(self._calls.failures, call)
            self._open(call, now)
            return "backend"
        return "attempt"

    def take_restorable(self) -> list[int]:
        """Returns, once, the fences of failures that were counted and turned out not to be the attempt's."""
        restorable, self._restorable = self._restorable, []
        return restorable

    def _failed_meanwhile(self, call: Failed, now: float) -> FailureBlame:
        if self._half_open is not None and call.fence in self._half_open.begun:
            self._half_open.bad += 1
            if self._half_open.bad >= self._half_open.good:
                self._open(call, now)
        return "backend"

    def _others_work(self, model: str, now: float) -> bool:
        """Whether another model's last call succeeded, not long ago."""
        return any(
            other != model and now - good_at < FRESH_S and self._of_model[other].last[-1] is None
            for other, good_at in self._good_at.items()
        )

    def _open(self, call: Failed, now: float) -> None:
        if self.reason is None:
            self._pause_s = PAUSE_S[0]
        self._opened_at = now
        self._open_until = now + self._rng.uniform(self._pause_s / 2, self._pause_s)
        self._pause_s = min(2 * self._pause_s, PAUSE_S[1])
        self._half_open = None
        self.reason = call.error_class

    def _close(self) -> None:
        self._half_open = self.reason = None
        self._calls = _Calls()
        self._of_model.clear()
        self._good_at.clear()

    def _give_up_model(self, call: Failed, now: float) -> None:
        self._restore(self._of_model.pop(call.model).failures, call)
        self._good_at.pop(call.model, None)
        self._broken[call.model] = now
        others = [one for one in self._calls.last if one is None or one.model != call.model]
        self._calls.last = deque(others, maxlen=WINDOW)

    def _restore(self, failures: list[Failed], but: Failed) -> None:
        self._restorable += [fence for one in failures if one is not but for fence in (one.fence, *one.others)]
