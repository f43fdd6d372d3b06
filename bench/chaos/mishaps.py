"""Injects each fault into the world, and records exactly when."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from bench.chaos.plan import Fault
from bench.chaos.world import Link, World

# After this time on a silent link, all calls sent before have arrived in the backend's log.
SETTLED_S = 0.1

TERMINATE = """
    select pg_terminate_backend(pid) from pg_stat_activity
     where backend_type = 'client backend' and pid <> pg_backend_pid()
"""


@dataclass(frozen=True, slots=True)
class Mishap:
    """A fault that happened. Times are seconds of the wall clock, which is also the database's."""

    fault: Fault
    began_at: float
    ended_at: float


class Chaos:
    """Injects the faults of a schedule, each in its own thread, so that a slow one delays no other."""

    def __init__(self, world: World, faults: list[Fault], say: Callable[[str], None]) -> None:
        self._world = world
        self._faults = faults
        self._say = say
        # The plan leaves time between two faults of one thing, but a slow machine may need more.
        self._busy = {fault.kind.thing: threading.Lock() for fault in faults}
        self._workers = [threading.Lock() for _ in world.workers]
        self.mishaps: list[Mishap] = []
        self.errors: list[str] = []

    def run(self) -> None:
        """Returns when the last fault is over."""
        started_at = time.monotonic()
        threads = []
        for fault in self._faults:
            while (wait_s := started_at + fault.at_s - time.monotonic()) > 0:
                time.sleep(min(wait_s, 0.5))
                self._look()
            self._say(str(fault))
            thread = threading.Thread(target=self._do, args=(fault,))
            thread.start()
            threads.append(thread)
        for thread in threads:
            thread.join()
        self._look()

    def _look(self) -> None:
        for worker, lock in zip(self._world.workers, self._workers, strict=True):
            if lock.acquire(blocking=False):
                try:
                    worker.look()
                finally:
                    lock.release()

    def _do(self, fault: Fault) -> None:
        is_of_worker = fault.kind.thing == "worker" and fault.worker is not None
        lock = self._workers[fault.worker or 0] if is_of_worker else self._busy[fault.kind.thing]
        with lock:
            began_at = time.time()
            try:
                with self._happening(fault):
                    ended_at = began_at if "kill -9" in fault.kind.name else None
                    time.sleep(fault.lasts_s)
            except Exception as error:  # noqa: BLE001 - the other faults continue, and the run reports the error
                self.errors.append(f"{fault}: {type(error).__name__}: {error}")
            self.mishaps.append(Mishap(fault, began_at, ended_at or time.time()))

    @contextmanager
    def _happening(self, fault: Fault) -> Iterator[None]:
        world, name, worker = self._world, fault.kind.name, fault.worker
        links = world.database_links if worker is None else [world.database_links[worker]]
        if fault.kind.thing == "backend link":
            links = [world.backend_link]
        if fault.kind.rate is not None:
            world.backend.fail({fault.kind.rate: fault.share})
            yield
            world.backend.fail({})
        elif name == "kill -9 of a worker":
            world.workers[worker or 0].kill()
            yield
            world.workers[worker or 0].start()
        elif name.startswith("worker frozen"):
            world.workers[worker or 0].signal(signal.SIGSTOP)
            yield
            world.workers[worker or 0].signal(signal.SIGCONT)
        elif name == "every session terminated":
            with world.connect() as conn:
                conn.execute(TERMINATE)
            yield
        elif name == "database crashes":
            with self._crash(), _done(links, Link.refuse, Link.listen):
                yield
        elif name == "backend killed":
            with _killed(world):
                yield
        else:
            with _done(links, Link.silence if "half-open" in name else Link.cut, Link.restore):
                yield

    @contextmanager
    def _crash(self) -> Iterator[None]:
        self._world.crash()
        yield
        self._world.restart()


@contextmanager
def _done(links: list[Link], how: Callable[[Link], None], back: Callable[[Link], None]) -> Iterator[None]:
    for link in links:
        how(link)
    yield
    for link in links:
        back(link)


@contextmanager
def _killed(world: World) -> Iterator[None]:
    """Kills the backend. The link is silent for a moment before, so that all calls that it saw are in its log."""
    world.backend_link.silence()
    time.sleep(SETTLED_S)
    world.backend.kill()
    world.backend_link.refuse()
    world.backend_link.restore()
    yield
    world.backend.start()
    world.backend_link.listen()
