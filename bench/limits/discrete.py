"""The same load and the same faults as in fleet.py, in simulated time, for any limiter.

Four processes have endless work. Each asks its limiter, waits as long as the limiter says, and sends. All delays come
from the same ranges: a few milliseconds to a shared store and back, up to 50 ms until a sleeping process wakes, up to
5 ms from the limiter's answer to the first byte, up to 250 ms of network delay. Each process stalls for a second every
20 to 40 s, and one for 30 s; then it continues, but late. Only llmqueue checks the clock before it sends.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from random import Random

from bench.limits.algorithms import Algorithm, Limiter
from llmqueue.forecast.timeline import Action, Timeline

PROCESSES = 4
# The limiter's clock at the start: no process begins at a full minute.
BEGIN_S = 47.0
STORE_S = (0.001, 0.004)
AWAKE_S = (0.0, 0.05)
SEND_S = (0.0, 0.005)
WAY_S = (0.0, 0.25)
STALL_EVERY_S = (20.0, 40.0)
STALL_S = 1.0
FREEZE_S = 30.0
FROZEN_AT = 0.4  # the moment at which the first process freezes, as a share of the run

Arrive = Callable[[float], None]


class Process:
    """An event loop: actions due during a stall happen right after it."""

    def __init__(self, timeline: Timeline, rng: Random, until_s: float, *, is_frozen: bool) -> None:
        self.timeline = timeline
        self.rng = rng
        self._pauses: list[tuple[float, float]] = []
        at_s = timeline.now + rng.uniform(*STALL_EVERY_S)
        while at_s < until_s:
            self._pauses.append((at_s, at_s + STALL_S))
            at_s += STALL_S + rng.uniform(*STALL_EVERY_S)
        if is_frozen:
            frozen_at = timeline.now + FROZEN_AT * (until_s - timeline.now)
            self._pauses = [p for p in self._pauses if not frozen_at - STALL_S < p[0] < frozen_at + FREEZE_S]
            self._pauses.append((frozen_at, frozen_at + FREEZE_S))
        self._pauses.sort(reverse=True)

    @property
    def now(self) -> float:
        return self.timeline.now

    def at(self, at_s: float, action: Action) -> None:
        self.timeline.at(at_s, partial(self._happens, action))

    def after(self, range_s: tuple[float, float], action: Action) -> None:
        self.at(self.now + self.rng.uniform(*range_s), action)

    def _happens(self, action: Action) -> None:
        while self._pauses and self._pauses[-1][1] <= self.now:
            self._pauses.pop()
        if self._pauses and self._pauses[-1][0] <= self.now:
            self.timeline.at(self._pauses[-1][1], partial(self._happens, action))
        else:
            action()


class Client:
    """Asks, waits, sends. With `is_far` the limiter is in a store that all processes share."""

    def __init__(self, process: Process, limiter: Limiter, arrive: Arrive, *, is_far: bool) -> None:
        self._process = process
        self._limiter = limiter
        self._arrive = arrive
        self._is_far = is_far

    def ask(self) -> None:
        if not self._is_far:
            self._got(self._limiter.acquire(self._process.now))
            return
        half_s = self._process.rng.uniform(*STORE_S) / 2
        # The store decides even while the process stalls.
        self._process.timeline.at(self._process.now + half_s, partial(self._decide, half_s))

    def _decide(self, half_s: float) -> None:
        wait_s = self._limiter.acquire(self._process.now)
        self._process.at(self._process.now + half_s, partial(self._got, wait_s))

    def _got(self, wait_s: float) -> None:
        process = self._process
        if wait_s > 0:
            process.at(process.now + wait_s + process.rng.uniform(*AWAKE_S), self.ask)
            return
        process.after(SEND_S, self._send)
        # without a round trip to a store, a process must not ask infinitely often at one moment
        process.after((0.0, 0.0) if self._is_far else (0.0001, 0.0005), self.ask)

    def _send(self) -> None:
        self._arrive(self._process.now + self._process.rng.uniform(*WAY_S))


def processes_of(timeline: Timeline, seconds: float, seed: int) -> list[Process]:
    """Returns four processes. For the same seed their faults are the same, with any limiter."""
    return [
        Process(timeline, Random(f"{seed}:{number}"), timeline.now + seconds, is_frozen=number == 0)
        for number in range(PROCESSES)
    ]


def run(algorithm: Algorithm, rpm: int, seconds: float, seed: int) -> list[float]:
    """Returns the arrivals, in seconds since the start."""
    timeline = Timeline()
    timeline.now = BEGIN_S
    arrivals: list[float] = []
    shared = algorithm.make(rpm, PROCESSES)
    for process in processes_of(timeline, seconds, seed):
        limiter = shared if algorithm.is_shared else algorithm.make(rpm, PROCESSES)
        client = Client(process, limiter, arrivals.append, is_far=algorithm.is_shared)
        process.after(AWAKE_S, client.ask)
    until_s = BEGIN_S + seconds
    while timeline.step(until_s):
        pass
    return relative(arrivals, seconds)


def relative(arrivals: Sequence[float], seconds: float) -> list[float]:
    return sorted(at_s - BEGIN_S for at_s in arrivals if at_s - BEGIN_S <= seconds)
