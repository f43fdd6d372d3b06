"""Hot tasks wait at most an interval while cold tasks fill the quota, and the oldest task is never starved (I13)."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import Any

import psycopg
import pytest

from tests.support.flow import Flow
from tests.support.sql import Queue

HOT_SHARE = 0.1
SLOW = pytest.mark.slow


@dataclass
class Load:
    """A cold backlog without end, and hot tasks that arrive by chance from `hot_from_s` on."""

    queue: Queue
    rpm: int
    hot_per_minute: float
    flow: Flow
    hot_from_s: float = 61.0
    arrived: dict[Any, float] = field(default_factory=dict)
    rng: random.Random = field(default_factory=lambda: random.Random(3))

    def start(self, backlog: int = 3000) -> None:
        self.top_up(backlog)
        self.flow.at(0, self._keep)
        if self.hot_per_minute:
            self.flow.at(self.hot_from_s, self._arrive)

    def top_up(self, how_many: int) -> None:
        self.queue.rows("insert into tasks (prompt) select 'why?' from generate_series(1, %s)", how_many)

    def _keep(self) -> None:
        """Every half a minute: as many cold tasks as were taken, and the ledger pruned."""
        self.top_up(self.rpm // 2 + 1)
        self.queue.rows("select llmqueue_internal.prune_ledger()")
        self.flow.at(self.flow.now_s + 30, self._keep)

    def _arrive(self) -> None:
        (key,) = self.queue.add(priority=100, created_at=self.queue.now)
        self.arrived[key] = self.flow.now_s
        self.flow.wake()
        self.flow.at(self.flow.now_s + self.rng.expovariate(self.hot_per_minute / 60), self._arrive)

    def waits(self) -> list[float]:
        """Of the hot tasks; those that are still waiting too, so far."""
        granted = {grant.id: at_s for at_s, grant in self.flow.grants}
        return sorted(granted.get(key, self.flow.now_s) - at_s for key, at_s in self.arrived.items())

    def used(self, since_s: float) -> float:
        """Of the quota, the hot ones included."""
        calls = sum(at_s >= since_s for at_s, _ in self.flow.grants)
        return calls / (self.rpm * (self.flow.now_s - since_s) / 60)


def load(conn: psycopg.Connection[Any], rpm: int, hot_per_minute: float, **columns: Any) -> Load:
    queue = Queue(conn)
    queue.model("m", rpm, **columns)
    return Load(queue, rpm, hot_per_minute, Flow(queue, hot_slots=20))


def p99(waits: list[float]) -> float:
    return waits[min(len(waits) - 1, int(len(waits) * 0.99))]


def report(name: str, found: Load, since_s: float) -> None:
    waits = found.waits()
    half = waits[len(waits) // 2]
    print(
        f"{name}: {len(waits)} hot, p50 {half * 1000:.0f} ms, p99 {p99(waits) * 1000:.0f} ms, longest "
        f"{waits[-1] * 1000:.0f} ms; one interval is {60 / found.rpm * 1000:.0f} ms; use {found.used(since_s):.2%}, "
        f"{found.flow.claims} claims"
    )


@pytest.mark.parametrize(
    ("rpm", "minutes"), [pytest.param(60, 70, marks=SLOW), (600, 10), pytest.param(3000, 4, marks=SLOW)]
)
def test_hot_tasks_wait_for_an_interval_at_the_most_behind_a_saturated_backlog(
    conn: psycopg.Connection[Any], rpm: int, minutes: int
) -> None:
    found = load(conn, rpm, rpm * HOT_SHARE / 2)
    found.start()

    found.flow.run(61 + 60 * minutes)

    report(f"rpm {rpm}", found, 61)
    assert len(found.arrived) >= 100
    assert p99(found.waits()) <= 60 / rpm + 0.1


@pytest.mark.slow
def test_hot_tasks_wait_for_an_interval_at_the_most_behind_a_backlog_of_100000(conn: psycopg.Connection[Any]) -> None:
    found = load(conn, 600, 600 * HOT_SHARE / 2)
    found.start(100_000)

    found.flow.run(61 + 60 * 20)

    report("rpm 600, 100,000 ready", found, 61)
    assert p99(found.waits()) <= 60 / 600 + 0.1


@pytest.mark.parametrize(("rpm", "max_concurrency", "minutes"), [pytest.param(60, 20, 60, marks=SLOW), (600, 100, 10)])
def test_slots_held_by_cold_calls_of_two_minutes_keep_no_hot_task_waiting(
    conn: psycopg.Connection[Any], rpm: int, max_concurrency: int, minutes: int
) -> None:
    found = load(conn, rpm, rpm * HOT_SHARE / 2, max_concurrency=max_concurrency)
    found.flow.latency_s = lambda grant: 1.0 if grant.is_hot else 120.0
    found.start(500)

    found.flow.run(61 + 60 * minutes)

    report(f"rpm {rpm}, {max_concurrency} at a time", found, 61)
    assert p99(found.waits()) <= 60 / rpm + 0.1
    cold = sum(not grant.is_hot for _, grant in found.flow.grants)
    assert cold >= 0.8 * max_concurrency * 0.9 * minutes / 2, "and the cold ones keep their slots busy"


@pytest.mark.parametrize("rpm", [60, pytest.param(600, marks=SLOW)])
def test_the_hot_share_is_lent_while_no_hot_task_comes(conn: psycopg.Connection[Any], rpm: int) -> None:
    """A cold start, then ten minutes; and again ten minutes after the last hot task."""
    found = load(conn, rpm, 0)
    found.start(2 * rpm)
    found.flow.run(61 + 600)
    print(f"rpm {rpm}: use {found.used(61):.2%} without hot tasks")
    assert found.used(61) >= 0.985


def test_the_hot_share_is_lent_again_ten_minutes_after_the_last_hot_task(conn: psycopg.Connection[Any]) -> None:
    found = load(conn, 60, 6)
    found.hot_from_s = 1
    found.start(200)
    found.flow.run(120)
    found.hot_per_minute = 1e-9
    found.flow.run(2100)

    last_s = max(found.arrived.values())
    quiet_s = last_s + 661
    print(f"use {found.used(quiet_s):.2%} from ten minutes after the last of {len(found.arrived)} hot tasks")
    assert last_s < 1000
    assert found.used(quiet_s) >= 0.985


def starve(found: Load, stream: str, slots: int, older: int) -> tuple[float, float]:
    """A task of the lowest priority under a stream of better ones without end; returns its wait and its bound."""
    queue, flow = found.queue, found.flow
    flow.slots = slots
    priority = 100 if stream == "hot" else 5

    def keep() -> None:
        """A few more than the quota takes, each newer than all that wait."""
        query = "insert into tasks (prompt, priority, created_at) select 'why?', %s, %s from generate_series(1, %s)"
        queue.rows(query, priority, queue.now, found.rpm // 10)
        flow.at(flow.now_s + 5, keep)

    flow.at(0, keep)
    flow.run(90)
    queue.add(older, priority=-3, created_at=queue.now)
    (lowest,) = queue.add(priority=-5, created_at=queue.now)
    ahead = queue.value(
        "select count(*) from llmqueue.task where is_ready and (waiting_since, id) < (%s, %s)", queue.now, lowest
    )
    bound_s = 60 * (ahead / (found.rpm / 10) + 1)
    flow.run(90 + bound_s + 30)

    started = [at_s for at_s, grant in flow.grants if grant.id == lowest]
    wait_s = started[0] - 90 if started else float("inf")
    print(f"{stream}, {slots} slots: {ahead} older, waited {wait_s:.0f} s, bound {bound_s:.0f} s")
    return wait_s, bound_s


@pytest.mark.parametrize("slots", [1, pytest.param(7, marks=SLOW), 200])
@pytest.mark.parametrize("stream", ["better", "hot"])
def test_the_oldest_task_is_started_within_its_bound(conn: psycopg.Connection[Any], stream: str, slots: int) -> None:
    wait_s, bound_s = starve(load(conn, 120, 0), stream, slots, older=40)

    assert wait_s <= bound_s
