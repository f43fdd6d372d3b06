"""The whole simulated fleet: its workers, the hot tasks that arrive meanwhile, and when it is over."""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from random import Random
from typing import Protocol
from uuid import UUID

from llmqueue.forecast import worker
from llmqueue.forecast.providers import Endpoint, open_endpoints
from llmqueue.forecast.scenario import Scenario
from llmqueue.forecast.timeline import Timeline
from llmqueue.types import Grant, Settlement

WAKE_S = (0.001, 0.003)  # from a COMMIT to a worker that listens
_ENDED = {"completed", "buried"}


class Scheduler(worker.Scheduler, Protocol):
    """What a fleet needs beside what its workers need."""

    def register(self, worker: UUID, at_s: float) -> None: ...

    def insert_hot(self, at_s: float) -> int:
        """Inserts a hot task and returns its key."""
        ...

    def wakes(self) -> set[str]:
        """Returns the wake-up signals that came since it was last asked."""
        ...


@dataclass(slots=True)
class Log:
    """What is remembered of a run. Times in seconds since the start."""

    first_keys: Sequence[int]  # of each lane of the backlog: its tasks have consecutive keys
    last_key: int  # of the backlog; later ones are hot
    hot_created_at: dict[int, float] = field(default_factory=dict)
    hot_waits_s: list[float] = field(default_factory=list)
    first_sent_at: dict[int, float] = field(default_factory=dict)  # by key: the oldest task of each lane
    done: Counter[str] = field(default_factory=Counter)  # by model
    ended_at: list[tuple[float, int]] = field(default_factory=list)  # tasks of the backlog: when, which lane
    buried: int = 0
    late_grants: int = 0
    retries: int = 0
    _first: frozenset[int] = frozenset()
    _hot_ended: int = 0

    def __post_init__(self) -> None:
        self._first = frozenset(self.first_keys)

    @property
    def open_hot(self) -> int:
        return len(self.hot_created_at) - self._hot_ended

    def sent(self, grant: Grant, at_s: float) -> None:
        key = int(str(grant.task.id))
        if key in self._first:
            self.first_sent_at.setdefault(key, at_s)
        elif key > self.last_key and grant.task.attempt_no == 1:
            self.hot_waits_s.append(at_s - self.hot_created_at[key])

    def settled(self, settlement: Settlement, outcome: str, at_s: float) -> None:
        key = int(str(settlement.grant.task.id))
        self.late_grants += outcome == "released"
        self.retries += outcome in {"retried", "refused"}
        if outcome not in _ENDED:
            return
        if outcome == "completed":
            self.done[settlement.grant.model] += 1
        else:
            self.buried += 1
        if key > self.last_key:
            self._hot_ended += 1
        else:
            self.ended_at.append((at_s, bisect_right(self.first_keys, key) - 1))


class Fleet:
    """Runs a scenario whose backlog is in the scheduler's table already."""

    def __init__(self, scenario: Scenario, scheduler: Scheduler, first_keys: Sequence[int], last_key: int) -> None:
        self.log = Log(first_keys, last_key)
        self.endpoints: Mapping[str, Endpoint] = open_endpoints(scenario)
        self.timeline = Timeline()
        self._scenario = scenario
        self._scheduler = scheduler
        self._backlog = last_key - first_keys[0] + 1 if first_keys else 0
        self._rng = Random(scenario.seed)
        self._workers = [self._worker() for _ in range(scenario.workers)]

    def run(self, on_progress: Callable[[], None] = lambda: None) -> None:
        """Returns when all is done or the scenario's time is over."""
        for each in self._workers:
            self._scheduler.register(each.worker, 0.0)
            each.start()
        if self._scenario.hot_per_minute:
            self._plan_hot()
        while not self._is_over() and self.timeline.step(self._scenario.for_s):
            self._pass_signals_on()
            on_progress()

    @property
    def is_backlog_done(self) -> bool:
        return len(self.log.ended_at) >= self._backlog

    def _is_over(self) -> bool:
        # without a backlog the hot tasks are what is simulated, for all of the time
        return self._backlog > 0 and self.is_backlog_done and self.log.open_hot == 0

    def _worker(self) -> worker.Worker:
        name = UUID(int=self._rng.getrandbits(128), version=4)
        return worker.Worker(
            name, self._scenario.slots, self._scheduler, self.endpoints, self.timeline, self.log, self._rng
        )

    def _plan_hot(self) -> None:
        gap_s = self._rng.expovariate(self._scenario.hot_per_minute / 60)
        self.timeline.at(self.timeline.now + gap_s, self._hot_comes)

    def _hot_comes(self) -> None:
        if self._backlog and self.is_backlog_done:
            return
        now = self.timeline.now
        self.log.hot_created_at[self._scheduler.insert_hot(now)] = now
        self._plan_hot()

    def _pass_signals_on(self) -> None:
        if signals := self._scheduler.wakes():
            for each in self._workers:
                heard_at = self.timeline.now + self._rng.uniform(*WAKE_S)
                self.timeline.at(heard_at, partial(each.hear, signals))
