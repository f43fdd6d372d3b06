"""Collects the evidence of a run: tasks, attempts, calls, outputs of processes, spill files."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from psycopg.rows import class_row

from bench.chaos.mishaps import Mishap
from bench.chaos.world import World
from llmqueue.fake_backend.call_log import LoggedCall
from tests.support import processes

_TASKS = "select id, prompt, answer, status, attempts, max_attempts, error from tasks order by id"
_ATTEMPTS = """
    select fence, task_id as task, model, worker::text, outcome, error_class, attempt_no,
           extract(epoch from granted_at)::float8 as granted_at, extract(epoch from sent_at)::float8 as sent_at,
           extract(epoch from ended_at)::float8 as ended_at
      from llmqueue.attempt order by granted_at, fence
"""


@dataclass(frozen=True, slots=True)
class Task:
    id: int
    prompt: str
    answer: str | None
    status: str
    attempts: int
    max_attempts: int | None
    error: str | None


@dataclass(frozen=True, slots=True)
class Attempt:
    """Times are seconds since 1970 by the database's clock, which is this machine's."""

    fence: int
    task: int
    model: str
    worker: str
    outcome: str | None
    error_class: str | None
    attempt_no: int
    granted_at: float
    sent_at: float | None
    ended_at: float | None


@dataclass(frozen=True, slots=True)
class Stall:
    """A period in which the backend's link was slow."""

    from_at: float
    to_at: float


@dataclass(slots=True)
class Evidence:
    tasks: Sequence[Task]
    attempts: Sequence[Attempt]
    calls: Sequence[LoggedCall]
    mishaps: Sequence[Mishap]
    stalls: Sequence[Stall]
    workers: Sequence[set[str]]  # their uuids, by number
    problems: list[str] = field(default_factory=list)
    prompts: dict[int, str] = field(init=False)

    def __post_init__(self) -> None:
        self.prompts = {task.id: task.prompt for task in self.tasks}


class Prober(threading.Thread):
    """Sends requests to the backend through its link ten times a second, to detect a slow machine or link."""

    EVERY_S = 0.1
    SLOW_S = 0.1

    def __init__(self, port: int) -> None:
        super().__init__(daemon=True)
        self._port = port
        self._is_over = threading.Event()
        self.stalls: list[Stall] = []

    def run(self) -> None:
        while not self._is_over.is_set():
            began_at = time.time()
            self._ask()
            took_s = time.time() - began_at
            if took_s > self.SLOW_S:
                # the stall may have begun right after the previous probe
                self.stalls.append(Stall(began_at - self.EVERY_S, began_at + took_s))
            before_s = time.monotonic()
            self._is_over.wait(self.EVERY_S)
            if (late_s := time.monotonic() - before_s - self.EVERY_S) > self.SLOW_S:
                self.stalls.append(Stall(time.time() - late_s - self.EVERY_S, time.time()))

    def stop(self) -> list[Stall]:
        self._is_over.set()
        self.join(15)
        return self.stalls

    def _ask(self) -> None:
        try:
            with socket.create_connection(("127.0.0.1", self._port), timeout=10) as probe:
                probe.sendall(b"GET /health HTTP/1.0\r\n\r\n")
                probe.recv(1)
        except OSError:
            pass  # the link is cut or silent, which its mishap records


def collect(world: World, mishaps: Sequence[Mishap], stalls: Sequence[Stall]) -> Evidence:
    """Reads everything, after the workers have ended."""
    world.backend.collect()
    with world.connect() as conn:
        with conn.cursor(row_factory=class_row(Task)) as cursor:
            tasks = cursor.execute(_TASKS).fetchall()
        with conn.cursor(row_factory=class_row(Attempt)) as cursor:
            attempts = cursor.execute(_ATTEMPTS).fetchall()
        quarantined = conn.execute("select task_id::text, step, reason from llmqueue.quarantine").fetchall()
    evidence = Evidence(
        tasks,
        attempts,
        list(world.backend.calls),
        sorted(mishaps, key=lambda mishap: mishap.began_at),
        stalls,
        [worker.uuids() for worker in world.workers],
    )
    evidence.problems += [f"task {task} was quarantined in {step}: {reason}" for task, step, reason in quarantined]
    evidence.problems += _processes(world)
    evidence.problems += _audit(world)
    return evidence


def _processes(world: World) -> list[str]:
    """Returns the problems in outputs, exit codes, spill files and the server's log."""
    found = []
    for worker in world.workers:
        found += [f"worker {worker.number} ended by itself with exit code {code}" for code in worker.codes]
        for spill in (world.folder / f"home{worker.number}").glob("**/spill/*.jsonl"):
            if spill.stat().st_size:
                lines = len(spill.read_text(errors="replace").splitlines())
                found.append(f"worker {worker.number}: {lines} lines are left in its spill file {spill.name}")
    for path in sorted(world.folder.glob("*.out")):
        text = path.read_text(errors="replace")
        if "Traceback" in text:
            found.append(f"{path.name} holds {text.count('Traceback')} tracebacks")
    for word in ("deadlock detected", "PANIC:", "TRAP:"):
        if count := world.server.log.count(word):
            found.append(f"the database's log says {word!r} {count} times")
    return found


def _audit(world: World) -> list[str]:
    """Returns the violations that `llmqueue audit` finds in the same run, by the attempt log alone."""
    env = processes.environment(DATABASE_URL=world.dsn)
    done = processes.run("audit", "--json", env=env, timeout_s=300)
    (world.folder / "audit.json").write_text(done.stdout)
    if done.returncode == 0:
        return []
    if done.returncode == 1 and done.stdout:
        bad = [m["model"] for m in json.loads(done.stdout)["models"] if _is_bad(m)]
        return [f"`llmqueue audit` finds a violation of {model}" for model in bad]
    return [f"`llmqueue audit` ended with {done.returncode}: {done.stderr.strip()[-300:]}"]


def _is_bad(model: dict[str, object]) -> bool:
    limits = model["limits"]
    assert isinstance(limits, list)
    return bool(model["sent_late"] or model["sent_early"] or any(limit["over"] for limit in limits))
