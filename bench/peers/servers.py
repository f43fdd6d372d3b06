"""The servers in which peers keep their jobs: a fresh one for each drain, with remaining jobs and CPU time."""

from __future__ import annotations

import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import LiteralString, Protocol
from urllib.parse import urlencode

import psutil
import psycopg
from psycopg.rows import TupleRow

from bench.world import cpu_s, embedded_database, server_cpu_s


class Server(Protocol):
    @property
    def url(self) -> str: ...

    def settle(self) -> None:
        """Prepares the server once the jobs are added."""

    def has(self, left: LiteralString) -> bool:
        """Returns whether the query, in the server's own language, finds any jobs."""

    def cpu_s(self) -> float: ...


Start = Callable[[], AbstractContextManager[Server]]


@dataclass(frozen=True)
class Postgres:
    conn: psycopg.Connection[TupleRow]

    @property
    def url(self) -> str:
        """The URL, because some peers accept nothing else; the host may be the folder of a socket."""
        info = self.conn.info
        place = urlencode({"host": info.host, "port": info.port}, safe="/")
        return f"postgresql://{info.user}@/{info.dbname}?{place}"

    def settle(self) -> None:
        self.conn.execute("vacuum analyze")

    def has(self, left: LiteralString) -> bool:
        """Takes a query in SQL that returns a row while jobs are left."""
        return self.conn.execute(left).fetchone() is not None

    def cpu_s(self) -> float:
        return server_cpu_s(self.conn)


@contextmanager
def postgres() -> Iterator[Postgres]:
    with embedded_database() as dsn, psycopg.connect(dsn, autocommit=True) as conn:
        yield Postgres(conn)


@dataclass(frozen=True)
class Redis:
    path: Path
    process: psutil.Process
    conn: socket.socket

    @property
    def url(self) -> str:
        return f"unix://{self.path}"

    def settle(self) -> None:
        pass

    def has(self, left: LiteralString) -> bool:
        """Takes a script in Lua that returns the number of jobs left."""
        words = ("EVAL", left, "0")
        self.conn.sendall("".join([f"*{len(words)}\r\n", *(f"${len(word)}\r\n{word}\r\n" for word in words)]).encode())
        reply = self.conn.recv(4096)
        if not reply.startswith(b":"):
            raise RuntimeError(f"Redis says {reply!r}")
        return int(reply[1:]) > 0

    def cpu_s(self) -> float:
        return cpu_s(self.process)


def redis() -> Start:
    """Uses the system's redis-server, which has to be installed, without persistence."""
    program = shutil.which("redis-server")
    if program is None:
        raise SystemExit("redis-server is not installed: apt-get install redis-server")
    return partial(_redis, program)


@contextmanager
def _redis(program: str) -> Iterator[Redis]:
    with tempfile.TemporaryDirectory(prefix="llmqueue-bench-") as home, socket.socket(socket.AF_UNIX) as conn:
        path = Path(home) / "redis.sock"
        settings = {"port": "0", "unixsocket": str(path), "dir": home, "save": "", "appendonly": "no"}
        options = [word for name, value in settings.items() for word in (f"--{name}", value)]
        with subprocess.Popen([program, *options], stdout=subprocess.DEVNULL) as process:
            try:
                while conn.connect_ex(str(path)) != 0:
                    assert process.poll() is None, "redis-server has ended"
                    time.sleep(0.02)
                yield Redis(path, psutil.Process(process.pid), conn)
            finally:
                process.terminate()
