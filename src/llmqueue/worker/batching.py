"""Which tasks of a claim go out together in one call (docs/decisions.md, 45).

A call of its own is best for a task: it waits for no other. But each call costs this process a part of a millisecond,
and a process that is busy with calls all the time sends no more of them. Several tasks in one call cost hardly more
than one; their answers come when the slowest is done.
"""

from __future__ import annotations

import math
import statistics
import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

from llmqueue.backend.classify import NO_SUCH_CALL
from llmqueue.logs import Event, logger
from llmqueue.types import Complete, Decision, Grant, Release, Retry, Settlement, TaskId

# A batch takes at most so many times as long as a single call, in the mean.
SLOWEST = 2.5
LARGEST = 1024
SAMPLES = 200
# With fewer it is not known how the latencies are spread.
LEAST_SAMPLES = 20
# Single calls that would take more of this process's time than that are batched.
BUSY = 0.4
# What a single call costs this process, in seconds of CPU, until it has been measured.
COST_S = 0.0005
COSTS = 5
LEAST_TASKS = 20
PERIOD_S = 0.2
COST_PERIOD_S = 0.5
# How often it is worked out how many of a model's tasks may go together.
LOOK_EVERY_S = 0.5
MEASURE_EVERY_S = 30.0
# While all goes out in batches, a single call shows again now and then how long one takes.
SAMPLE_EVERY_S = 5.0
# So many batches that fail as a whole, and the model's tasks go alone for a while.
FAILURES = 2
ALONE_S = 600.0
MOST_FAILED = 10_000


class Batching:
    """Knows how long calls take and how busy this process is with them; `can_batch`: whether the adapter can."""

    def __init__(self, *, can_batch: bool) -> None:
        self._can_batch = can_batch
        self._load = _Load()
        self._models: dict[str, _Model] = {}
        self._failed: dict[TaskId, None] = {}  # tasks whose batch failed at no attempt of theirs; the oldest first

    def gathers(self, model: str) -> bool:
        """Tells whether it is worth waiting a moment, so that more tasks of the model come in one claim."""
        return self._of(model).gathers

    def calls(self, grants: Sequence[Grant]) -> Iterator[tuple[Sequence[Grant], Batch | None]]:
        """Divides the grants of one claim into calls; those with several tasks have a Batch, which ended() takes.

        These go alone: hot tasks, tasks that have failed before, and tasks on their last attempt, which a failure of
        another task of the batch would end.
        """
        now = time.monotonic()
        self._load.began(sum(grant.dispatch != "batch" for grant in grants), now)
        for model, of_model in groupby(grants, key=lambda grant: grant.model):
            for together in self._slices(model, list(of_model), now):
                yield together, Batch(len(together)) if len(together) > 1 else None

    def _slices(self, model: str, grants: list[Grant], now: float) -> Iterator[Sequence[Grant]]:
        most = self._most(grants[0], now)
        self._of(model).gathers = most > 1
        if most == 1:
            yield from ([grant] for grant in grants)
            return
        rest: list[Grant] = []
        for grant in grants:
            if self._goes_alone(grant):
                yield [grant]
            else:
                rest.append(grant)
        is_auto = grants[0].dispatch == "auto"
        if rest and is_auto and self._of(model).wants_single(now):
            yield [rest.pop()]
        calls = -(-len(rest) // most)  # as even as can be: a last call of one would be as dear as a full one
        for no in range(calls):
            together = rest[no * len(rest) // calls : (no + 1) * len(rest) // calls]
            if len(together) > 1:
                self._load.is_batched = self._load.is_batched or is_auto
            yield together

    def _most(self, grant: Grant, now: float) -> int:
        if grant.dispatch == "single":
            return 1
        model = self._of(grant.model)
        if not self._can_batch:
            if grant.dispatch == "batch":
                model.log_not_batched(grant.model, "LLMQUEUE_BACKEND has no call for several tasks")
            return 1
        if grant.dispatch == "batch":
            if not model.has_no_batch(now):
                return grant.max_batch
            model.log_not_batched(
                grant.model, "the backend rejects batches (4xx): see LLMQUEUE_BACKEND_BATCH_PATH and max_batch"
            )
            return 1
        return min(grant.max_batch, model.most_together(now)) if self._load.is_busy else 1

    def _goes_alone(self, grant: Grant) -> bool:
        task = grant.task
        return task.is_hot or task.attempt_no > 1 or task.attempt_no >= task.max_attempts or task.id in self._failed

    def ended(self, settlement: Settlement, batch: Batch | None) -> None:
        """Notes how a call went. A batch tells only how long its slowest task took, and whether all of it failed."""
        decision, latency_s = settlement.decision, settlement.latency_s
        model = self._of(settlement.grant.model)
        if batch is not None:
            batch.ended(decision)
            if isinstance(decision, Retry) and not decision.counts and decision.refusal is None:
                self._failed[settlement.grant.task.id] = None
                if len(self._failed) > MOST_FAILED:
                    del self._failed[next(iter(self._failed))]
            if not batch.under_way:
                model.batch_ended(batch, time.monotonic())
        elif latency_s is not None and (isinstance(decision, Complete) or _timed_out(decision)):
            model.latencies.append(latency_s)

    def _of(self, model: str) -> _Model:
        return self._models.get(model) or self._models.setdefault(model, _Model())


def _timed_out(decision: Decision) -> bool:
    return isinstance(decision, Retry) and decision.error_class == "timeout"


@dataclass(slots=True)
class Batch:
    """A call with several tasks, of which `under_way` are not settled."""

    under_way: int
    failed: int = 0
    known: int = 0  # tasks whose end says something about the call
    is_unknown: bool = False  # the backend has no such call
    is_rejected: bool = False  # by a 4xx to all of it

    def ended(self, decision: Decision) -> None:
        self.under_way -= 1
        if isinstance(decision, Release) or (isinstance(decision, Retry) and decision.refusal is not None):
            return  # was not sent, or the model is full: says nothing about batches
        self.known += 1
        self.failed += isinstance(decision, Retry)
        self.is_unknown = isinstance(decision, Retry) and decision.error_class in NO_SUCH_CALL
        self.is_rejected = isinstance(decision, Retry) and decision.error_class.startswith("http_4")

    @property
    def has_failed(self) -> bool | None:
        """None: nothing is known."""
        return self.failed == self.known if self.known else None


class _Load:
    """Whether single calls take, or would take, more of this process's time than BUSY."""

    def __init__(self) -> None:
        self._since = self._cost_since = time.monotonic()
        self._cpu_s = time.process_time()
        self._tasks = self._cost_tasks = 0
        self._costs: deque[float] = deque([COST_S], maxlen=COSTS)
        self._was_over = False
        self._measured_at = self._cost_since
        self.is_batched = False
        self.is_busy = False

    def began(self, tasks: int, now: float) -> None:
        self._measure(tasks, now)
        self._tasks += tasks
        if now - self._since < PERIOD_S:
            return
        is_over = self._tasks / (now - self._since) * statistics.median_low(self._costs) > BUSY
        # not for a moment's sake; and single again for a moment, to see what they cost
        self.is_busy = is_over and self._was_over and now - self._measured_at < MEASURE_EVERY_S
        self._was_over = is_over
        self._since, self._tasks = now, 0

    def _measure(self, tasks: int, now: float) -> None:
        """What a single call costs, where there are enough of them and little else."""
        self._cost_tasks += tasks
        if now - self._cost_since < COST_PERIOD_S:
            return
        cpu_s = time.process_time()
        if self._cost_tasks >= LEAST_TASKS and not self.is_batched:
            self._costs.append((cpu_s - self._cpu_s) / self._cost_tasks)
            self._measured_at = now
        self._cost_since, self._cpu_s, self._cost_tasks, self.is_batched = now, cpu_s, 0, False


class _Model:
    """How the calls of a model went: `latencies` of the last single ones, in seconds. `gathers`: it has batches now."""

    def __init__(self) -> None:
        self.gathers = False
        self.latencies: deque[float] = deque(maxlen=SAMPLES)
        self._most = 1
        self._looked_at = -math.inf
        self._asked_at = -math.inf
        self._failures = 0
        self._alone_until = -math.inf
        self._none_until = -math.inf
        self._logged: str | None = None

    def log_not_batched(self, model: str, reason: str) -> None:
        """Logs, once per reason, that `dispatch = batch` is not followed."""
        if reason != self._logged:
            self._logged = reason
            logger().warning(Event.NOT_BATCHED, model=model, reason=reason, effect="its tasks go out one by one")

    def has_no_batch(self, now: float) -> bool:
        """Tells whether the backend was found to have no such call, not long ago."""
        return now < self._none_until

    def wants_single(self, now: float) -> bool:
        """Asks for a single call, once in a while."""
        if now - self._asked_at < SAMPLE_EVERY_S:
            return False
        self._asked_at = now
        return True

    def most_together(self, now: float) -> int:
        if self.has_no_batch(now) or now < self._alone_until or len(self.latencies) < LEAST_SAMPLES:
            return 1
        if now - self._looked_at > LOOK_EVERY_S:
            self._looked_at = now
            self._most = most_together(sorted(self.latencies))
        return self._most

    def batch_ended(self, batch: Batch, now: float) -> None:
        """Batches that fail as a whole, one after the other: the backend cannot do them, or not in time."""
        if batch.is_unknown:
            self._none_until = now + ALONE_S
        if batch.has_failed is None:
            return
        self._failures = self._failures + 1 if batch.has_failed else 0
        if self._failures >= FAILURES:
            self._failures = 0
            self._alone_until = now + ALONE_S
            if batch.is_rejected:
                self._none_until = now + ALONE_S


def most_together(latencies: Sequence[float]) -> int:
    """Returns the largest power of two n with E[slowest of n] ≤ SLOWEST * mean, of sorted latencies in seconds.

    The slowest of n independent calls is at most the k-th fastest of those measured with probability (k/count)^n.
    """
    count = len(latencies)
    most = SLOWEST * sum(latencies) / count
    n = 1
    while n < LARGEST and _slowest(latencies, 2 * n) <= most:
        n *= 2
    return n


def _slowest(latencies: Sequence[float], n: int) -> float:
    count = len(latencies)
    return sum(latency * ((k / count) ** n - ((k - 1) / count) ** n) for k, latency in enumerate(latencies, start=1))
