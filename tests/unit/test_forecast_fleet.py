"""The event loop of `llmqueue simulate`, with a scheduler of a few lines instead of the database."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from uuid import UUID

import pytest

from llmqueue.fake_backend.providers import SlidingLog
from llmqueue.forecast.fleet import Fleet
from llmqueue.forecast.report import Report, make_report
from llmqueue.forecast.scenario import Lane, Model, Scenario
from llmqueue.forecast.timeline import Timeline
from llmqueue.types import Claim, Complete, Grant, Refusal, Release, Room, Settlement, Task


class PlainScheduler:
    """The default pool alone, first in first out, hot before cold; a strict log of window + guard per model."""

    def __init__(self, scenario: Scenario, tasks: int) -> None:
        self.rpm = {model.name: model.rpm for model in scenario.models}
        self.guard_s = scenario.guard_s
        self.waiting = [*range(1, tasks + 1)]
        self.hot: list[int] = []
        self.settled: list[Settlement] = []
        self.most_running = 0
        self._logs = {name: SlidingLog(60 + self.guard_s) for name in self.rpm}
        self._last_key = tasks
        self._fence = 0
        self._rung: set[str] = set()

    def register(self, worker: UUID, at_s: float) -> None:
        pass

    def claim(
        self,
        worker: UUID,
        models: Sequence[str] | None,
        room: Room,
        chores: Sequence[str],
        running: int,
        claim_state: str | None,
        at_s: float,
    ) -> Claim:
        grants: list[Grant] = []
        refusals = []
        for model in [*self.rpm] if models is None else models:
            wait_s = 0.0
            while (self.hot or self.waiting) and len(grants) < room.total:
                if wait_s := self._logs[model].wait_s(at_s, 1, self.rpm[model]):
                    break
                self._logs[model].take(at_s, 1, self.rpm[model])
                grants.append(self._grant(model, at_s))
            reason = "rpm" if wait_s else None if self.hot or self.waiting else "empty"
            refusals.append(Refusal(model, reason, wait_s or None))
        self.most_running = max(self.most_running, running + len(grants))
        return Claim(tuple(grants), tuple(refusals), None)

    def maintain(self, worker: UUID, chores: Sequence[str], running: int, at_s: float) -> None:
        pass

    def settle(self, worker: UUID, settlements: Sequence[Settlement], at_s: float) -> Mapping[int, str]:
        self.settled += settlements
        outcomes = {}
        for settlement in settlements:
            task = settlement.grant.task
            outcomes[task.fence] = "completed"
            if not isinstance(settlement.decision, Complete):
                self.waiting.append(int(str(task.id)))
                outcomes[task.fence] = "released" if isinstance(settlement.decision, Release) else "refused"
        return outcomes

    def insert_hot(self, at_s: float) -> int:
        self._last_key += 1
        self.hot.append(self._last_key)
        self._rung.add("hot")
        return self._last_key

    def wakes(self) -> set[str]:
        rung, self._rung = self._rung, set()
        return rung

    def _grant(self, model: str, at_s: float) -> Grant:
        self._fence += 1
        is_hot = bool(self.hot)
        key = (self.hot or self.waiting).pop(0)
        task = Task(key, self._fence, 1, 5, 0, None, None, is_hot=is_hot)
        return Grant(model, task, at_s, at_s + self.guard_s / 2, 600.0)


def run(scenario: Scenario, tasks: int = 0) -> tuple[Fleet, PlainScheduler, Report]:
    random.seed(scenario.seed)
    scheduler = PlainScheduler(scenario, tasks)
    fleet = Fleet(scenario, scheduler, [1] if tasks else [], tasks)
    fleet.run()
    return fleet, scheduler, make_report(scenario, fleet, 1.0)


def scenario(rpm: int = 60, tasks: int = 0, **fields: object) -> Scenario:
    backlog = (Lane("", tasks),) if tasks else ()
    given: dict[str, object] = {"models": (Model("groq-llama-2-70b", rpm),), "backlog": backlog, "seed": 1, **fields}
    return Scenario(**given).checked()  # type: ignore[arg-type]


def test_events_happen_in_order_and_those_of_one_time_as_they_were_planned() -> None:
    timeline, seen = Timeline(), []
    for at, name in ((2.0, "c"), (1.0, "a"), (1.0, "b")):
        timeline.at(at, lambda name=name: seen.append((timeline.now, name)))  # type: ignore[misc]

    while timeline.step(10.0):
        pass

    assert seen == [(1.0, "a"), (1.0, "b"), (2.0, "c")]
    assert timeline.now == 10.0


def test_an_event_in_the_past_happens_next_and_time_does_not_go_back() -> None:
    timeline, seen = Timeline(), []
    timeline.at(5.0, lambda: timeline.at(3.0, lambda: seen.append(timeline.now)))
    timeline.at(6.0, lambda: seen.append(timeline.now))

    while timeline.step(10.0):
        pass

    assert seen == [5.0, 6.0]


def test_a_backlog_is_done_at_the_limit_and_never_over_it() -> None:
    _, _, report = run(scenario(rpm=60, tasks=200), 200)

    (model,) = report.models
    assert report.backlog_done == 200
    assert model.worst_60s == 60
    assert not model.is_over
    assert [model.rejections[kind] for kind in ("sliding", "bucket", "minute")] == [0, 0, 0]
    assert model.rejections["ten-seconds"] > 0
    assert report.done_after_s is not None
    assert 180 < report.done_after_s < 190  # 60 at once, then three windows of 60.5 s
    assert report.simulated_s < 190  # it ends with the backlog


def test_workers_share_a_limit() -> None:
    _, _, report = run(scenario(rpm=60, tasks=100, workers=4), 100)

    assert report.models[0].worst_60s == 60
    assert report.backlog_done == 100


def test_no_more_calls_run_than_there_are_slots() -> None:
    _, scheduler, report = run(scenario(rpm=6000, tasks=300, slots=10), 300)

    assert scheduler.most_running <= 10
    assert report.backlog_done == 300


def test_a_grant_that_comes_too_late_is_given_back_unsent() -> None:
    fleet, scheduler, report = run(scenario(rpm=60, tasks=30, guard_s=0.02), 30)

    late = [each for each in scheduler.settled if isinstance(each.decision, Release)]
    assert late
    assert report.late_grants == len(late)
    assert len(fleet.endpoints["groq-llama-2-70b"].calls.arrivals) == 30
    assert all(each.sent_after_s is None for each in late)
    assert all(each.sent_after_s <= 0.01 for each in scheduler.settled if each.sent_after_s is not None)


def test_a_hot_task_wakes_the_fleet_at_once() -> None:
    _, _, report = run(scenario(rpm=600, hot_per_minute=30))

    assert report.hot > 200
    assert report.hot_sent >= report.hot - 1
    assert report.hot_p99_s is not None
    assert report.hot_p99_s < 0.05
    assert report.simulated_s == 600.0
    assert report.backlog == 0


def test_hot_tasks_stop_coming_when_the_backlog_is_done() -> None:
    _, _, report = run(scenario(rpm=60, tasks=50, hot_per_minute=10), 50)

    assert report.simulated_s < 300
    assert report.hot == report.hot_sent


def test_a_refused_call_comes_back_and_is_counted() -> None:
    # A guard of a minute's start: the provider allows 6 in 10 s, the scheduler sends 36 at once.
    _, _, report = run(scenario(rpm=36, tasks=36, provider="ten-seconds"), 36)

    (model,) = report.models
    assert model.refused > 0
    assert report.retries == model.refused
    assert report.backlog_done == 36


def test_a_run_with_a_seed_can_be_repeated() -> None:
    again = scenario(rpm=600, tasks=500, hot_per_minute=20, workers=3)

    assert run(again, 500)[2] == run(again, 500)[2]


@pytest.mark.parametrize("rpm", [0, 60])
def test_what_is_not_done_in_time_is_estimated(rpm: int) -> None:
    _, _, report = run(scenario(rpm=rpm, tasks=1000, for_s=300.0), 1000)

    assert report.done_after_s is None
    assert report.simulated_s == 300.0
    if rpm == 0:
        assert report.left_s is None
    else:
        assert report.left_s is not None
        assert report.ends_after_s == pytest.approx(1000, rel=0.05)
