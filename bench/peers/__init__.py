"""Peers, each in its own environment under .venv-peers, configured as their documentation recommends for throughput."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import LiteralString

from bench.peers import servers

HERE = Path(__file__).parent
ENVIRONMENTS = HERE.parents[1] / ".venv-peers"


@dataclass(frozen=True)
class Peer:
    """A peer. `left` is a query, in the language of its server, that finds jobs until the last end is written."""

    title: str
    command: Sequence[str]
    left: LiteralString
    options: Sequence[str] = ()
    server: servers.Start = servers.postgres

    def fill(self, url: str, jobs: int) -> None:
        """Installs the peer into a fresh server and adds no-op jobs."""
        subprocess.run([*self.command, "fill", url, str(jobs)], check=True, cwd=HERE)

    def trickle(self, url: str, jobs: int) -> None:
        """Adds jobs one by one, with a pause after each."""
        subprocess.run([*self.command, "trickle", url, str(jobs)], check=True, cwd=HERE)

    def work(self, url: str, verb: str = "work") -> subprocess.Popen[str]:
        """Starts a worker, which runs until it is killed.

        It prints the time of its first job and of every hundredth after it (seconds of time.time()); with "wait", for
        jobs of a trickle, the seconds that each has waited.
        """
        command = [*self.command, verb, url, *self.options]
        return subprocess.Popen(command, cwd=HERE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)


def pgqueuer() -> Peer:
    return Peer(
        "PgQueuer, asyncpg, batches of 100",
        [python("pgqueuer"), str(HERE / "pgqueuer_worker.py")],
        "select 1 from pgqueuer limit 1",
    )


def procrastinate() -> Peer:
    return Peer(
        "Procrastinate, 100 at a time",
        [python("procrastinate"), str(HERE / "procrastinate_worker.py")],
        "select 1 from procrastinate_jobs where status in ('todo', 'doing') limit 1",
    )


def graphile(*options: str) -> Peer:
    return Peer(
        f"Graphile Worker, 24 at a time{', local queue and batched completion' if options else ''}",
        _node("graphile_worker.mjs"),
        "select 1 from graphile_worker._private_jobs limit 1",
        options,
    )


def pgboss() -> Peer:
    return Peer(
        "pg-boss, batches of 500, two at a time",
        _node("pgboss_worker.mjs"),
        # It keeps finished jobs: without the order of its index, each query would read the whole table.
        "select 1 from pgboss.job where name = 'noop' and state in ('created', 'retry', 'active')"
        " order by name, state limit 1",
    )


def celery() -> Peer:
    return Peer(
        "Celery on Redis, a thread per core",
        [python("celery"), str(HERE / "celery_worker.py")],
        # A job that moves from the first to the second is in neither, but earlier prefetched jobs are in the second.
        "return redis.call('llen', 'celery') + redis.call('hlen', 'unacked')",
        server=servers.redis(),
    )


def taskiq() -> Peer:
    return Peer(
        "taskiq on Redis streams, 100 at a time",
        [python("taskiq"), str(HERE / "taskiq_worker.py")],
        # pending: delivered and not acknowledged; lag: not delivered yet
        "local group = redis.call('xinfo', 'groups', 'taskiq')[1]; return group[6] + group[12]",
        server=servers.redis(),
    )


def _node(program: str) -> Sequence[str]:
    """Creates the environment of the Node.js peers, with its own Node.js, if it is missing. Returns the command."""
    folder = ENVIRONMENTS / "node"
    interpreter = folder / "node_modules" / ".bin" / "node"
    package, made_from = HERE / "package.json", folder / "package.json"
    if not interpreter.exists() or made_from.read_bytes() != package.read_bytes():
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        made_from.write_bytes(package.read_bytes())
        subprocess.run(["npm", "install", "--no-package-lock", "--no-audit", "--no-fund"], cwd=folder, check=True)
    (folder / program).write_bytes((HERE / program).read_bytes())
    return [str(interpreter), str(folder / program)]


def python(name: str) -> str:
    """Creates the environment of a Python peer if it is missing. Returns its interpreter."""
    folder = ENVIRONMENTS / name
    interpreter = folder / "bin" / "python"
    requirements = HERE / f"requirements-{name}.txt"
    made_from = folder / requirements.name
    if not made_from.exists() or made_from.read_bytes() != requirements.read_bytes():
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(folder)], check=True)
        subprocess.run([str(interpreter), "-m", "pip", "install", "-qq", "-r", str(requirements)], check=True)
        made_from.write_bytes(requirements.read_bytes())
    return str(interpreter)
