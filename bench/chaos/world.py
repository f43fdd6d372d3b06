"""The processes of a run, the links between them, and the actions on each of them.

Each worker reaches the database through its own TCP proxy, in front of the server's socket; all workers reach the
backend through another proxy.
"""

from __future__ import annotations

import json
import re
import signal
import socket
import subprocess
import threading
import time
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psycopg
from psycopg.conninfo import make_conninfo
from psycopg.rows import TupleRow

from bench.chaos import scene
from llmqueue.fake_backend.call_log import LoggedCall
from llmqueue.install.adopt import AdoptionSpec, install
from tests.support import processes
from tests.support.proxy import Proxy
from tests.support.server import Server, control, start_server

POSTGRES = 18
PAGE = 10_000
START_S = 60.0
STOP_S = 90.0


class Link(Proxy):
    """A proxy that can also refuse connections."""

    def refuse(self) -> None:
        # close() alone would leave the port open while accept() waits
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.reset()

    def listen(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", self.port), backlog=1024)
        threading.Thread(target=self._accept, daemon=True).start()


@dataclass(slots=True)
class Backend:
    """The simulated backend, which may be killed; its call log is fetched before each kill."""

    folder: Path
    port: int = 0
    calls: list[LoggedCall] = field(default_factory=list)
    lives: int = 0
    popen: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        self.lives += 1
        command = [*processes.LLMQUEUE, "backend", "--port", str(self.port), "--speed", str(scene.SPEED)]
        with (self.folder / f"backend{self.lives}.out").open("wb") as errors:
            self.popen = subprocess.Popen(
                [*command, "--seed", str(self.lives)],
                stdout=subprocess.PIPE,
                stderr=errors,
                env=processes.environment(),
            )
        assert self.popen.stdout is not None
        line = self.popen.stdout.readline().decode()
        found = re.search(r"http://127.0.0.1:(\d+)", line)
        assert found, f"the backend did not start: {line!r}"
        self.port = int(found[1])

    def fail(self, rates: Mapping[str, float]) -> None:
        """Sets its fault rates; without rates it has no faults."""
        self._ask("/faults", json.dumps(rates).encode())

    def kill(self) -> None:
        self.collect()
        assert self.popen is not None
        self.popen.kill()
        self.popen.wait(10)

    def stop(self) -> None:
        if self.popen is not None and self.popen.poll() is None:
            self.collect()
            self.popen.terminate()
            self.popen.wait(20)

    def collect(self) -> None:
        """Fetches the calls since its last start; no call may arrive after that."""
        since = 0
        while True:
            page = self._ask(f"/calls?limit={PAGE}&since={since}")
            self.calls += [LoggedCall(**call) for call in page["calls"]]
            if not page["calls"]:
                return
            since = page["next"]

    def _ask(self, path: str, body: bytes | None = None) -> Any:
        """Returns the JSON reply of one of its own endpoints."""
        method = "GET" if body is None else "PUT"
        request = urllib.request.Request(f"http://127.0.0.1:{self.port}{path}", body, method=method)
        with urllib.request.urlopen(request, timeout=20) as reply:
            return json.loads(reply.read())


@dataclass(slots=True)
class Worker:
    """A worker with its own folder, whose process may be killed and is started again."""

    number: int
    folder: Path
    env: Mapping[str, str]
    outputs: list[Path] = field(default_factory=list)
    process: processes.Process | None = None
    codes: list[int] = field(default_factory=list)  # of processes that ended by themselves
    is_killed: bool = False
    is_frozen: bool = False

    def start(self) -> None:
        path = self.folder / f"worker{self.number}-{len(self.outputs) + 1}.out"
        self.outputs.append(path)
        self.process = processes.start(path, "worker", env=self.env)
        self.is_killed = self.is_frozen = False

    def signal(self, number: signal.Signals) -> None:
        if self.process is not None and self.process.popen.poll() is None:
            self.process.popen.send_signal(number)

    def kill(self) -> None:
        self.is_killed = True
        self.signal(signal.SIGKILL)
        if self.process is not None:
            self.process.popen.wait(10)

    def look(self) -> None:
        """Records a process that has ended without being killed, and starts another, so that the run can continue."""
        if self.process is None or self.is_killed:
            return
        code = self.process.popen.poll()
        if code is not None:
            self.codes.append(code)
            self.start()

    def stop(self) -> None:
        """Ends it as an operator would, and records a wrong exit code."""
        if self.process is None or self.is_killed:
            return
        try:
            code = self.process.stop(timeout_s=STOP_S)
        except subprocess.TimeoutExpired:
            self.process.popen.kill()
            code = self.process.popen.wait(10)
        if code != 0:
            self.codes.append(code)

    def uuids(self) -> set[str]:
        """Returns the ids of its processes in the database."""
        found: set[str] = set()
        for path in self.outputs:
            for line in path.read_text(errors="replace").splitlines():
                if '"worker_started"' in line:
                    found.add(str(json.loads(line)["worker"]))
        return found


@dataclass(slots=True)
class World:
    folder: Path
    server: Server
    dsn: str  # directly to the server
    database_links: list[Link]
    backend_link: Link
    backend: Backend
    workers: list[Worker]

    def connect(self) -> psycopg.Connection[TupleRow]:
        """Opens a session directly to the server; waits if the server is down."""
        give_up_at = time.monotonic() + START_S
        while True:
            try:
                return psycopg.connect(self.dsn, autocommit=True)
            except psycopg.OperationalError:
                if time.monotonic() > give_up_at:
                    raise
                time.sleep(0.01)

    def crash(self) -> None:
        control(self.server, "stop", "-m", "immediate")

    def restart(self) -> None:
        control(self.server, "start")


@contextmanager
def built(folder: Path, workers: int, tasks_of: str, lease_s: float) -> Iterator[World]:
    """Yields a database, a backend, the links and workers that are not started. `tasks_of` names the database."""
    with ExitStack() as stack:
        server = stack.enter_context(start_server(POSTGRES))
        with psycopg.connect(server.dsn(), autocommit=True) as conn:
            conn.execute(psycopg.sql.SQL("create database {}").format(psycopg.sql.Identifier(tasks_of)))
        dsn = server.dsn(tasks_of)
        install(dsn, AdoptionSpec())
        backend = Backend(folder)
        backend.start()
        stack.callback(backend.stop)
        socket_path = f"{server.host}/.s.PGSQL.{server.port}"
        links = [Link(socket_path) for _ in range(workers)]
        way = Link(("127.0.0.1", backend.port))
        for link in (*links, way):
            stack.callback(link.close)
        made = []
        for number, link in enumerate(links):
            home = folder / f"home{number}"
            home.mkdir()
            made.append(
                Worker(
                    number,
                    folder,
                    processes.environment(
                        DATABASE_URL=make_conninfo(host="127.0.0.1", port=link.port, user="postgres", dbname=tasks_of),
                        BACKEND_URL=f"http://127.0.0.1:{way.port}",
                        HOME=str(home),
                        LEASE_S=f"{lease_s:g}",
                        LOG_FORMAT="json",
                    ),
                )
            )
        world = World(folder, server, dsn, links, way, backend, made)
        try:
            yield world
        finally:
            for worker in made:
                worker.signal(signal.SIGCONT)
                worker.kill()
