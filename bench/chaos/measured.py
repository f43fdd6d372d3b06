"""Measures recovery times separately, without limits that would hide them, for the table Recovery of `make chaos`."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from bench.chaos.world import World, built
from tests.support.eventually import eventually

MODEL = "kimi-k2.5"
SOME = 50  # calls that a worker has in flight when it is killed
RESTARTS = 5

_OPEN = "select array_agg(fence) from llmqueue.attempt where ended_at is null and worker::text = any (%s)"
_AGAIN = """
    select count(*), max(extract(epoch from n.granted_at))::float8
      from llmqueue.attempt a
      cross join lateral (select min(n.granted_at) as granted_at from llmqueue.attempt n
                           where n.task_id = a.task_id and n.fence > a.fence) n
     where a.fence = any (%s) and n.granted_at is not null
"""
_FIRST = "select min(extract(epoch from granted_at))::float8 from llmqueue.attempt where granted_at > to_timestamp(%s)"


@dataclass(frozen=True, slots=True)
class Measured:
    what: str
    times: int
    p50_s: float
    max_s: float
    target_s: float

    @property
    def is_met(self) -> bool:
        return self.max_s <= self.target_s


def measure(folder: Path, is_quick: bool, say: Callable[[str], None]) -> list[Measured]:
    leases = (5.0,) if is_quick else (20.0, 5.0)
    found = []
    for lease_s in leases:
        say(f"a worker is killed, lease {lease_s:g} s")
        times = [_kill(_folder(folder, f"kill{lease_s:g}-{n}"), lease_s) for n in range(1 if is_quick else 3)]
        target_s = 30.0 if lease_s == 20 else 2 * lease_s
        what = f"killed worker's tasks run again, LEASE_S={lease_s:g}"
        found.append(Measured(what, len(times), statistics.median(times), max(times), target_s))
    say("the database crashes and is started")
    times = _restarts(_folder(folder, "restarts"), 2 if is_quick else RESTARTS)
    found.append(
        Measured("database accepts sessions → first claim", len(times), statistics.median(times), max(times), 2.0)
    )
    return found


def _folder(folder: Path, name: str) -> Path:
    made = folder / name
    made.mkdir()
    return made


def _kill(folder: Path, lease_s: float) -> float:
    """Returns the seconds from a kill until the last task of the killed worker is granted to the other worker."""
    with built(folder, 2, "recovery", lease_s) as world, world.connect() as conn:
        conn.execute("insert into llmqueue.model_config (model, rpm) values (%s, 60000)", (MODEL,))
        conn.execute("insert into tasks (prompt) select 'prompt ' || n from generate_series(1, %s) n", (SOME,))
        victim, other = world.workers
        world.backend.fail({"hang_rate": 1.0})
        victim.start()

        def in_flight() -> list[int]:
            row = conn.execute(_OPEN, (list(victim.uuids()),)).fetchone()
            return list(row[0]) if row and row[0] else []

        eventually(lambda: len(in_flight()) == SOME, timeout_s=60)
        other.start()
        eventually(other.uuids, timeout_s=60)
        time.sleep(1.2 * lease_s)  # a worker may sweep only after a lease of heartbeats
        lost = in_flight()
        assert lost
        world.backend.fail({})
        killed_at = time.time()
        victim.kill()

        def again() -> tuple[int, float]:
            row = conn.execute(_AGAIN, (lost,)).fetchone()
            assert row is not None
            return row[0], row[1]

        eventually(lambda: again()[0] == len(lost), timeout_s=120 + 3 * lease_s)
        return again()[1] - killed_at


def _restarts(folder: Path, how_often: int) -> list[float]:
    """Returns the seconds from the first accepted session of a restarted server to the first grant, with a backlog."""
    with built(folder, 2, "recovery", 20.0) as world:
        with world.connect() as conn:
            conn.execute("insert into llmqueue.model_config (model, rpm) values (%s, 1200)", (MODEL,))
            conn.execute("insert into tasks (prompt) select 'prompt ' || n from generate_series(1, 10000) n")
        for worker in world.workers:
            worker.start()
        with world.connect() as conn:
            eventually(lambda: conn.execute("select 1 from llmqueue.attempt limit 1").fetchall(), timeout_s=60)
        return [_restart(world) for _ in range(how_often)]


def _restart(world: World) -> float:
    time.sleep(2)
    world.crash()
    time.sleep(1)
    world.restart()
    with world.connect() as conn:
        accepts_at = time.time()

        def first() -> float | None:
            row = conn.execute(_FIRST, (accepts_at,)).fetchone()
            return row[0] if row else None

        eventually(first, timeout_s=90)
        granted_at = first()
        assert granted_at is not None
        return granted_at - accepts_at
