"""One run of chaos: builds the world, injects the faults, lets the fleet finish, and judges the evidence."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from random import Random

import psycopg

from bench.chaos import scene
from bench.chaos.evidence import Evidence, Prober, collect
from bench.chaos.judge import Verdict, judge
from bench.chaos.mishaps import Chaos
from bench.chaos.plan import WORKERS, Fault, schedule
from bench.chaos.recovery import Felt, felt
from bench.chaos.world import World, built
from tests.support.eventually import eventually

LEASE_S, QUICK_LEASE_S = 20.0, 5.0
LONGEST_S, QUICK_LONGEST_S = 30.0, 8.0
# The load, as a share of what the limits allow: faults cost calls, and the drain should be short.
LOAD = 0.7
DRAIN_S = 240.0

_LEFT = "select count(*) from tasks where status not in ('solved', 'failed', 'cancelled')"


@dataclass(slots=True)
class Result:
    seed: int
    seconds: float
    lease_s: float
    faults: Sequence[Fault]
    evidence: Evidence
    verdict: Verdict
    felt: Sequence[Felt]
    drained_s: float


def run(seed: int, seconds: float, folder: Path, is_quick: bool, say: Callable[[str], None]) -> Result:
    lease_s = QUICK_LEASE_S if is_quick else LEASE_S
    faults = schedule(seed, seconds, lease_s, QUICK_LONGEST_S if is_quick else LONGEST_S)
    rng = Random(f"tasks {seed}")
    tasks = round(sum(scene.RPM.values()) * max(seconds / 60, 1.0) * LOAD)
    with built(folder, WORKERS, "chaos", lease_s) as world:
        with world.connect() as conn:
            scene.fill(conn, tasks, rng)
        for worker in world.workers:
            worker.start()
        _wait_for_first_calls(world)
        prober = Prober(world.backend_link.port)
        prober.start()
        hot = Source(world, seed)
        hot.start()
        chaos = Chaos(world, faults, say)
        chaos.run()
        hot.stop()
        drained_s = _drain(world, DRAIN_S + seconds / 2, say)
        stalls = prober.stop()
        for worker in world.workers:
            worker.stop()
        evidence = collect(world, chaos.mishaps, stalls)
        evidence.problems += [f"the run itself: {error}" for error in chaos.errors]
        if (seen := len(evidence.tasks)) < tasks + hot.added:
            evidence.problems.append(f"{tasks + hot.added} tasks were inserted, {seen} exist")
    return Result(seed, seconds, lease_s, faults, evidence, judge(evidence), felt(evidence), drained_s)


class Source(threading.Thread):
    """Inserts hot tasks regularly, as another program would, and keeps trying while the database is down."""

    def __init__(self, world: World, seed: int) -> None:
        super().__init__(daemon=True)
        self._world = world
        self._rng = Random(f"hot {seed}")
        self._is_over = threading.Event()
        self.added = 0

    def run(self) -> None:
        while not self._is_over.wait(scene.HOT_EVERY_S):
            texts = [f"now, please: {self._rng.random()}" for _ in range(scene.HOT_AT_ONCE)]
            # tasks whose COMMIT was interrupted may exist or not: they do not count
            with suppress(psycopg.Error), self._world.connect() as conn:
                scene.add_hot(conn, texts)
                self.added += len(texts)

    def stop(self) -> None:
        self._is_over.set()
        self.join(60)


def _wait_for_first_calls(world: World) -> None:
    def has_begun() -> bool:
        with world.connect() as conn:
            return conn.execute("select count(distinct worker) from llmqueue.attempt").fetchone() == (WORKERS,)

    eventually(has_begun, timeout_s=60, every_s=0.1)


def _drain(world: World, most_s: float, say: Callable[[str], None]) -> float:
    """Waits up to `most_s` until every task has ended. Returns the seconds that it took."""
    began_at = time.monotonic()
    reported_at = began_at
    with world.connect() as conn:
        while (left := conn.execute(_LEFT).fetchone()) != (0,) and time.monotonic() < began_at + most_s:
            if time.monotonic() > reported_at + 20:
                reported_at = time.monotonic()
                say(f"faults are over; {left[0] if left else 0} tasks are left")
            for worker in world.workers:
                worker.look()
            time.sleep(0.2)
    return time.monotonic() - began_at
