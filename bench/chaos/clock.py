"""Limits under a clock that steps, in simulated time: the database functions with a simulated clock.

No machine's clock is changed. Three workers claim, settle, die and are swept through the real SQL functions, one call
after the other, while the database's clock steps back and forward by up to an hour. A worker reacts like db/clock.py:
it returns the tasks of a claim that showed a step forward, and calls `clock_stepped`. The limits are judged by true
time, which never steps.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from random import Random
from uuid import UUID

import psycopg

from bench.chaos.world import POSTGRES
from llmqueue.db.clock import STEP_S
from llmqueue.demo.windows import Period, fullest, windows
from llmqueue.install.adopt import AdoptionSpec, install
from tests.support.server import start_server
from tests.support.sql import Grant, Queue, complete, release

RPM = {"a": 30, "b": 90, "c": 300}
LEASE_S = 20.0
WORKERS = 3
STEP_EVERY_S = (30.0, 150.0)
# ranges of steps: back by less than the limiter compensates, back by more, forward
STEPS_S = ((-1.0, -0.01), (-3600.0, -1.001), (0.3, 3600.0))


@dataclass(slots=True)
class Steps:
    """The results."""

    minutes: float
    steps: int = 0
    calls: int = 0
    deaths: int = 0
    lost_alive: int = 0  # attempts of living workers counted as lost, so that their tasks were called twice
    worst: dict[str, int] = field(default_factory=dict)
    violations: list[str] = field(default_factory=list)


class Fleet:
    """Workers on one connection. `true_s` is the true time, `queue.now` the time of the database's clock."""

    def __init__(self, queue: Queue, rng: Random) -> None:
        self.queue = queue
        self.rng = rng
        self.true_s = self.offset_s = 0.0
        self.sent: dict[str, list[float]] = {name: [] for name in RPM}
        self.running: list[tuple[float, Grant]] = []  # with the end times of their calls
        self.seen_offset_s: dict[UUID, float] = {}
        self.heartbeat_s: dict[UUID, float] = {}
        self.lost_alive = 0
        for _ in range(WORKERS):
            self.join()

    def join(self) -> None:
        worker = self.queue.register(LEASE_S)
        self.seen_offset_s[worker] = self.offset_s
        self.heartbeat_s[worker] = self.true_s

    def die(self) -> None:
        worker = self.rng.choice(list(self.heartbeat_s))
        del self.heartbeat_s[worker], self.seen_offset_s[worker]
        self.running = [(ends_s, grant) for ends_s, grant in self.running if grant.worker != worker]
        self.join()

    def pass_time(self, seconds: float) -> None:
        self.true_s += seconds
        self.queue.advance(seconds)

    def step(self, seconds: float) -> None:
        self.offset_s += seconds
        self.queue.advance(seconds)

    def work(self) -> None:
        """Lets each worker do its due work: heartbeat, sweep, settle, claim."""
        for worker in self.rng.sample(list(self.heartbeat_s), len(self.heartbeat_s)):
            if self.true_s - self.heartbeat_s[worker] >= LEASE_S / 5:
                self.heartbeat_s[worker] = self.true_s
                self.queue.beat(worker)
                self.queue.sweep(worker)
            self._settle(worker)
            self._claim(worker)

    def finish(self) -> None:
        """Lets all running calls end, and sweeps the dead workers."""
        for _ in range(round(4 * LEASE_S)):
            self.pass_time(1.0)
            for worker in self.heartbeat_s:
                self.queue.beat(worker)
                self.queue.sweep(worker)
                self._settle(worker)

    def _settle(self, worker: UUID) -> None:
        done = [grant for ends_s, grant in self.running if grant.worker == worker and ends_s <= self.true_s]
        self.running = [run for run in self.running if run[1] not in done]
        self.lost_alive += sum(self.queue.attempt(grant)["outcome"] == "lost" for grant in done)
        if done:
            self.queue.settle(*(complete(grant) for grant in done), worker=worker)

    def _claim(self, worker: UUID) -> None:
        claimed = self.queue.claim(self.rng.randint(1, 40), worker=worker)
        step_s = self.offset_s - self.seen_offset_s[worker]
        self.seen_offset_s[worker] = self.offset_s
        if step_s > STEP_S and claimed.reasons:
            self.queue.settle(*(release(grant) for grant in claimed.grants), worker=worker)
            self.queue.rows("select llmqueue.clock_stepped()")
            return
        for grant in claimed.grants:
            self.sent[grant.model].append(self.true_s)
            self.running.append((self.true_s + self.rng.expovariate(1 / 3), grant))


def run(seed: int, minutes: float) -> Steps:
    """Simulates `minutes` of true time."""
    rng = Random(f"clock {seed}")
    with start_server(POSTGRES) as server:
        dsn = server.dsn()
        install(dsn, AdoptionSpec())
        with psycopg.connect(dsn, autocommit=True) as conn:
            queue = Queue(conn)
            for model, rpm in RPM.items():
                queue.model(model, rpm)
            queue.add(round(sum(RPM.values()) * minutes) + 100)
            fleet = Fleet(queue, rng)
            found = Steps(minutes)
            next_step_s = next_death_s = rng.uniform(*STEP_EVERY_S)
            while fleet.true_s < 60 * minutes:
                fleet.pass_time(rng.uniform(0.05, 1.0))
                if fleet.true_s >= next_step_s:
                    fleet.step(rng.uniform(*rng.choice(STEPS_S)))
                    found.steps += 1
                    next_step_s += rng.uniform(*STEP_EVERY_S)
                if fleet.true_s >= next_death_s:
                    fleet.die()
                    found.deaths += 1
                    next_death_s += rng.uniform(*STEP_EVERY_S)
                fleet.work()
            fleet.finish()
            _judge(found, fleet)
    return found


def _judge(found: Steps, fleet: Fleet) -> None:
    for model, rpm in RPM.items():
        seen = windows(fleet.sent[model], [Period(float("-inf"), rpm)])
        worst = fullest(seen)
        found.calls += len(fleet.sent[model])
        found.worst[model] = worst.calls if worst else 0
        if worst and worst.is_over:
            found.violations.append(
                f"{model}: {worst.calls} calls in 60 s of true time until {worst.at_s:.1f} s, {rpm} allowed"
            )
    found.lost_alive = fleet.lost_alive
    rows = fleet.queue.rows(
        """
        select t.id, t.status, count(*) filter (where a.outcome = 'completed') as recorded,
               count(a.fence) filter (where a.ended_at is null) as open
          from tasks t left join llmqueue.attempt a on a.task_id = t.id
         group by t.id having t.status = 'running' or count(a.fence) filter (where a.ended_at is null) > 0
             or (t.status = 'solved')::integer <> count(*) filter (where a.outcome = 'completed')
        """
    )
    if rows:
        found.violations.append(f"{len(rows)} tasks with no end or not one recorded answer, the first: {dict(rows[0])}")
