"""What came of a simulation: when it is done, how full the limits were, how long hot tasks waited."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from llmqueue.fake_backend.call_log import worst_window
from llmqueue.fake_backend.providers import KINDS, rejections
from llmqueue.forecast.fleet import Fleet, Log
from llmqueue.forecast.providers import Calls
from llmqueue.forecast.scenario import Model, Scenario

WINDOW_S = 60.0


@dataclass(frozen=True, slots=True)
class ModelReport:
    """One model. `use_pct` is how full its windows were on average while it had calls; None without a whole one.

    Tokens are counted as its provider does; without a limit on them they are 0.
    """

    model: str
    done: int
    calls: int
    refused: int
    rpm: int
    worst_60s: int
    use_pct: float | None
    tpm: int | None
    worst_60s_tokens: int
    tokens_use_pct: float | None
    rejections: Mapping[str, int]  # by each provider emulator, of the same calls

    @property
    def is_over(self) -> bool:
        return self.worst_60s > self.rpm


@dataclass(frozen=True, slots=True)
class Report:
    """The whole run. Times are seconds of simulated time but for `wall_s`; waits are from insert to sending."""

    models: Sequence[ModelReport]
    provider: str
    simulated_s: float
    backlog: int
    backlog_done: int
    done_after_s: float | None  # None: not within the time simulated
    left_s: float | None  # then: how much longer at the pace so far; None: it does not move
    hot: int
    hot_sent: int
    hot_p50_s: float | None
    hot_p99_s: float | None
    oldest_cold_s: float | None  # wait of the oldest task of the lane that waited longest; None: not sent
    buried: int
    late_grants: int
    retries: int
    wall_s: float

    @property
    def ends_after_s(self) -> float | None:
        """When the backlog is done, measured or estimated."""
        if self.done_after_s is not None:
            return self.done_after_s
        return None if self.left_s is None else self.simulated_s + self.left_s

    @property
    def calls(self) -> int:
        return sum(model.calls for model in self.models)


def make_report(scenario: Scenario, fleet: Fleet, wall_s: float) -> Report:
    """Judges a fleet that has run."""
    log, ended_s = fleet.log, fleet.timeline.now
    waits = sorted(log.hot_waits_s)
    is_done = fleet.is_backlog_done and scenario.tasks == len(log.ended_at)
    last_end_s = max((at_s for at_s, _ in log.ended_at), default=None)
    return Report(
        models=[_model(model, fleet.endpoints[model.name].calls, log) for model in scenario.models],
        provider=scenario.provider,
        simulated_s=ended_s,
        backlog=scenario.tasks,
        backlog_done=len(log.ended_at),
        done_after_s=last_end_s if is_done else None,
        left_s=None if is_done else left_s(scenario, log.ended_at, ended_s),
        hot=len(log.hot_created_at),
        hot_sent=len(waits),
        hot_p50_s=percentile(waits, 0.5),
        hot_p99_s=percentile(waits, 0.99),
        oldest_cold_s=oldest_cold_s(log),
        buried=log.buried,
        late_grants=log.late_grants,
        retries=log.retries,
        wall_s=wall_s,
    )


def _model(model: Model, calls: Calls, log: Log) -> ModelReport:
    arrivals = calls.arrivals
    return ModelReport(
        model=model.name,
        done=log.done[model.name],
        calls=len(arrivals),
        refused=calls.refused,
        rpm=model.rpm,
        worst_60s=worst_window(arrivals, WINDOW_S),
        use_pct=use_pct(arrivals, [1] * len(arrivals), model.rpm),
        tpm=model.tpm,
        worst_60s_tokens=worst_sum(arrivals, calls.tokens),
        tokens_use_pct=None if model.tpm is None else use_pct(arrivals, calls.tokens, model.tpm),
        rejections={kind: rejections(kind, arrivals, model.rpm) for kind in KINDS},
    )


def left_s(scenario: Scenario, ended_at: Sequence[tuple[float, int]], now_s: float) -> float | None:
    """How long the rest of the backlog takes, each lane at its pace; None if one does not move.

    The pace is that of whole minutes after the first, which begins with a burst and without answers.
    """
    names = [lane.lane for lane in scenario.backlog]
    waiting = Counter[str]()
    for lane in scenario.backlog:
        waiting[lane.lane] += lane.tasks
    measured_s = max(0.0, now_s - WINDOW_S) // WINDOW_S * WINDOW_S or now_s
    ended = Counter(names[position] for _, position in ended_at)
    lately = Counter(names[position] for at_s, position in ended_at if at_s > now_s - measured_s)
    longest_s = 0.0
    for name, tasks in waiting.items():
        rest = tasks - ended[name]
        if rest and not lately[name]:
            return None
        if rest:
            longest_s = max(longest_s, rest / (lately[name] / measured_s))
    return longest_s


def oldest_cold_s(log: Log) -> float | None:
    """The longest wait among the oldest task of each lane; None where one was never sent, or without a backlog."""
    waits = [log.first_sent_at.get(key) for key in log.first_keys]
    known = [wait for wait in waits if wait is not None]
    return max(known, default=None) if len(known) == len(waits) else None


def percentile(ordered: Sequence[float], share: float) -> float | None:
    """The nearest-rank percentile of sorted values; None without any."""
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)] if ordered else None


def worst_sum(times: Sequence[float], costs: Sequence[int]) -> int:
    """The largest sum of costs in a half-open window of 60 s; `times` are in order."""
    worst = inside = start = 0
    for end, at_s in enumerate(times):
        inside += costs[end]
        while times[start] <= at_s - WINDOW_S:
            inside -= costs[start]
            start += 1
        worst = max(worst, inside)
    return worst


def use_pct(times: Sequence[float], costs: Sequence[int], limit: int) -> float | None:
    """How full windows of 60 s were on average: those that end between a minute after the first call and the last."""
    if not times or not limit or times[-1] <= times[0] + WINDOW_S:
        return None
    enters = list(zip(times, costs, strict=True))
    leaves = [(at_s + WINDOW_S, -cost) for at_s, cost in enters]
    begin_s, end_s = times[0] + WINDOW_S, times[-1]
    inside, area = 0, 0.0
    for (at_s, cost), (next_s, _) in pairwise(sorted([*enters, *leaves, (begin_s, 0), (end_s, 0)])):
        inside += cost
        if begin_s <= at_s < end_s:
            area += inside * (next_s - at_s)
    return round(100 * area / (end_s - begin_s) / limit, 1)
