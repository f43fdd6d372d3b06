"""A temporary embedded server with default durability and an installed database."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
import psycopg
from psycopg.rows import TupleRow

from llmqueue.embedded import server as embedded
from llmqueue.install.adopt import AdoptionSpec, install


@contextmanager
def embedded_database(**options: str) -> Iterator[str]:
    """Yields the DSN of a new database and deletes the server afterwards; `options` are settings of the server."""
    home = Path(tempfile.mkdtemp(prefix="llmqueue-bench-"))
    home.chmod(0o755)  # for root the server runs as another user, who must be able to enter
    try:
        dsn = embedded.start(home, options=options)
        install(dsn, AdoptionSpec())
        yield dsn
    finally:
        embedded.leave(home)
        shutil.rmtree(home, ignore_errors=True)


def postmaster(conn: psycopg.Connection[TupleRow]) -> psutil.Process:
    """Returns the server's first process, whose children are the backends."""
    parent = psutil.Process(conn.info.backend_pid).parent()
    assert parent is not None
    return parent


def cpu_s(process: psutil.Process) -> float:
    """Returns the CPU seconds of a process so far; 0 if it has ended."""
    with suppress(psutil.NoSuchProcess):
        times = process.cpu_times()
        return float(times.user + times.system)
    return 0.0


def server_cpu_s(conn: psycopg.Connection[TupleRow]) -> float:
    """Returns the CPU seconds of the server with all its backends, including ended ones."""
    server = postmaster(conn)
    while True:
        ended_s = _of_ended_children_s(server)
        living_s = sum(map(cpu_s, [server, *server.children()]))
        if _of_ended_children_s(server) == ended_s:  # otherwise a child that has just ended is missing in both sums
            return ended_s + living_s


def _of_ended_children_s(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.children_user + times.children_system)
