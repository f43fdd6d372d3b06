"""What a run of failed calls means: is it the backend, one model of it, or each attempt by itself (design I11).

Knows neither a clock nor the network: who calls it says the time (seconds of time.monotonic()). It judges the calls of
one process. Each worker has a way to the backend of its own, and what one of them finds out costs it ten failures.
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
# Between two trials while the backend fails. The longest pause is how late its return may be noticed.
PAUSE_S = (1.0, 30.0)
# A trial may be a call of two minutes: after that long without an end it lets another go.
TRIAL_S = 10.0
# Another model's answer says for that long that the backend is well.
FRESH_S = 60.0
# A model that was closed for its failures counts as broken for that long: twice the longest pause between two probes.
BROKEN_S = 600.0

Blame = Literal["attempt", "model", "backend"]


@dataclass(frozen=True, slots=True)
class Failed:
    """A call that failed with a 5xx or a lost connection; `granted_at` is when its claim was made.

    `others` are the fences of the other tasks in it: it is one failure, and forgiven for all.
    """

    model: str
    fence: int
    granted_at: float
    error_class: str
    others: tuple[int, ...] = ()


@dataclass(slots=True)
class _Calls:
    """The last calls; None is one that went well."""

    last: deque[Failed | None] = field(default_factory=lambda: deque(maxlen=WINDOW))

    @property
    def failures(self) -> list[Failed]:
        return [call for call in self.last if call is not None]


@dataclass(slots=True)
class _Trial:
    """Calls that go out while it is not known whether the backend is back: `most` at once, twice that per answer."""

    most: int = 1
    begun: dict[int, float] = field(default_factory=dict)
    good: int = 0
    bad: int = 0

    def room(self, now: float) -> int:
        return max(0, self.most - sum(now - begun_at < TRIAL_S for begun_at in self.begun.values()))


class CircuitBreaker:
    """Closed: calls go out. Open: none does until the pause is over. Then trials, one, two, four, until it closes.

    Ten minutes of 502 must bury no backlog, so what fails while the circuit is not closed is the backend's fault, and
    so are the failures that opened it: their attempts were counted, and take_forgiven() names them.
    """

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng
        self._calls = _Calls()
        self._of_model: dict[str, _Calls] = {}
        self._good_at: dict[str, float] = {}
        self._broken: dict[str, float] = {}  # models that were closed and have not answered since; the last failure
        self._opened_at: float | None = None
        self._open_until: float | None = None
        self._trial: _Trial | None = None
        self._pause_s = PAUSE_S[0]
        self._forgiven: list[int] = []
        self.because: str | None = None

    @property
    def is_closed(self) -> bool:
        return self._open_until is None and self._trial is None

    def leave(self, now: float) -> int | None:
        """Returns how many more calls may go out now; None: the circuit does not say."""
        if self._open_until is not None:
            if now < self._open_until:
                return 0
            self._open_until, self._trial = None, _Trial()
        return None if self._trial is None else self._trial.room(now)

    def go_slowly(self) -> None:
        """Begins with one call, as after an outage: the backend may have come back for a moment only."""
        if self.is_closed:
            self._trial = _Trial()

    def started(self, fence: int, now: float) -> None:
        if self._trial is not None:
            self._trial.begun[fence] = now

    def ended(self, fence: int) -> None:
        """Call at the end of every attempt, whatever came of it; a trial that told nothing makes room for another."""
        if self._trial is not None:
            self._trial.begun.pop(fence, None)

    def succeeded(self, model: str, fence: int, now: float) -> None:
        """Any reply that is not a failure: the backend works."""
        self._good_at[model] = now
        self._broken.pop(model, None)
        self._calls.last.append(None)
        self._of_model.setdefault(model, _Calls()).last.append(None)
        if self._trial is not None and fence in self._trial.begun:
            self._trial.good += 1
            self._trial.most *= 2
            if self._trial.most >= WINDOW:
                self._close()

    def failed(self, call: Failed, now: float) -> Blame:
        """Returns whose fault the failure is. The circuit opens, or a model is to be closed, with the tenth of 20."""
        if not self.is_closed:
            return self._failed_meanwhile(call, now)
        if self._opened_at is not None and call.granted_at <= self._opened_at:
            return "backend"  # was under way when it opened, and is late to say so
        if now - self._broken.get(call.model, -math.inf) < BROKEN_S:
            self._broken[call.model] = now
            return "model"
        self._calls.last.append(call)
        of_model = self._of_model.setdefault(call.model, _Calls())
        of_model.last.append(call)
        if len(of_model.failures) >= HALF and self._others_are_well(call.model, now):
            self._close_model(call, now)
            return "model"
        if len(self._calls.failures) >= HALF:
            self._forgive(self._calls.failures, call)
            self._open(call, now)
            return "backend"
        return "attempt"

    def take_forgiven(self) -> list[int]:
        """Returns, once, the fences of failures that were counted and turned out not to be the attempt's."""
        forgiven, self._forgiven = self._forgiven, []
        return forgiven

    def _failed_meanwhile(self, call: Failed, now: float) -> Blame:
        if self._trial is not None and call.fence in self._trial.begun:
            self._trial.bad += 1
            if self._trial.bad >= self._trial.good:
                self._open(call, now)
        return "backend"

    def _others_are_well(self, model: str, now: float) -> bool:
        """Another model's last call went well, not long ago."""
        return any(
            other != model and now - good_at < FRESH_S and self._of_model[other].last[-1] is None
            for other, good_at in self._good_at.items()
        )

    def _open(self, call: Failed, now: float) -> None:
        if self.because is None:
            self._pause_s = PAUSE_S[0]
        self._opened_at = now
        self._open_until = now + self._rng.uniform(self._pause_s / 2, self._pause_s)
        self._pause_s = min(2 * self._pause_s, PAUSE_S[1])
        self._trial = None
        self.because = call.error_class

    def _close(self) -> None:
        self._trial = self.because = None
        self._calls = _Calls()
        self._of_model.clear()
        self._good_at.clear()

    def _close_model(self, call: Failed, now: float) -> None:
        self._forgive(self._of_model.pop(call.model).failures, call)
        self._good_at.pop(call.model, None)
        self._broken[call.model] = now
        others = [one for one in self._calls.last if one is None or one.model != call.model]
        self._calls.last = deque(others, maxlen=WINDOW)

    def _forgive(self, failures: list[Failed], but: Failed) -> None:
        self._forgiven += [fence for one in failures if one is not but for fence in (one.fence, *one.others)]


def blames(error_class: str) -> bool:
    """Tells the failures that may be the backend's, a 5xx or a lost connection, from those of one attempt."""
    return error_class == "connection_lost" or error_class.startswith("http_5")
