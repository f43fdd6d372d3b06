"""A database of its own on an embedded server with default durability, installed, thrown away afterwards."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
import psycopg
from psycopg.rows import TupleRow

from llmqueue import embedded
from llmqueue.install.adopt import AdoptionSpec, install


@contextmanager
def embedded_database(**options: str) -> Iterator[str]:
    """Yields its DSN; `options` are settings of the server."""
    home = Path(tempfile.mkdtemp(prefix="llmqueue-bench-"))
    home.chmod(0o755)  # as root the server runs as a user of its own, who must get in
    try:
        dsn = embedded.start(home, options=options)
        install(dsn, AdoptionSpec())
        yield dsn
    finally:
        embedded.leave(home)
        shutil.rmtree(home, ignore_errors=True)


def postmaster(conn: psycopg.Connection[TupleRow]) -> psutil.Process:
    """The server's first process, whose children are the backends."""
    parent = psutil.Process(conn.info.backend_pid).parent()
    assert parent is not None
    return parent


def cpu_s(process: psutil.Process) -> float:
    """CPU seconds of a process so far; 0 of one that is gone."""
    with suppress(psutil.NoSuchProcess):
        times = process.cpu_times()
        return float(times.user + times.system)
    return 0.0


def server_cpu_s(conn: psycopg.Connection[TupleRow]) -> float:
    """CPU seconds of the server with all its backends, those that have ended too."""
    server = postmaster(conn)
    while True:
        ended_s = _of_ended_children_s(server)
        living_s = sum(map(cpu_s, [server, *server.children()]))
        if _of_ended_children_s(server) == ended_s:  # else one that has just ended would be missing in both
            return ended_s + living_s


def _of_ended_children_s(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.children_user + times.children_system)
