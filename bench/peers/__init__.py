"""Peers, each in an environment of its own under .venv-peers, configured as they recommend for throughput."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import LiteralString
from urllib.parse import urlencode

from psycopg.conninfo import conninfo_to_dict

HERE = Path(__file__).parent
ENVIRONMENTS = HERE.parents[1] / ".venv-peers"


@dataclass(frozen=True)
class Peer:
    """`left` is a query that has a row while jobs are left."""

    title: str
    command: Sequence[str]
    left: LiteralString
    options: Sequence[str] = ()

    def fill(self, dsn: str, jobs: int) -> None:
        """Installs the peer into a fresh database and adds jobs that do nothing."""
        subprocess.run([*self.command, "fill", _url(dsn), str(jobs)], check=True, cwd=HERE)

    def work(self, dsn: str) -> subprocess.Popen[str]:
        """Starts a worker, which prints the time of its first job (seconds of time.time()) and runs until killed."""
        command = [*self.command, "work", _url(dsn), *self.options]
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
    folder = ENVIRONMENTS / "graphile"
    if not (folder / "node_modules" / "graphile-worker").exists():
        folder.mkdir(parents=True, exist_ok=True)
        for name in ("package.json", "graphile_worker.mjs"):
            (folder / name).write_bytes((HERE / name).read_bytes())
        subprocess.run(["npm", "install", "--no-package-lock", "--no-audit", "--no-fund"], cwd=folder, check=True)
    (folder / "graphile_worker.mjs").write_bytes((HERE / "graphile_worker.mjs").read_bytes())
    return Peer(
        f"Graphile Worker, 24 at a time{', local queue and batched completion' if options else ''}",
        ["node", str(folder / "graphile_worker.mjs")],
        "select 1 from graphile_worker._private_jobs limit 1",
        options,
    )


def _url(dsn: str) -> str:
    """The DSN as a URL, which is all that some take; the host may be the folder of a socket."""
    parts = conninfo_to_dict(dsn)
    place = urlencode({"host": parts["host"], "port": parts["port"]}, safe="/")
    return f"postgresql://{parts['user']}@/{parts['dbname']}?{place}"


def python(name: str) -> str:
    """Makes the environment of a Python peer when it is not there. Returns its interpreter."""
    folder = ENVIRONMENTS / name
    interpreter = folder / "bin" / "python"
    requirements = HERE / f"requirements-{name}.txt"
    made_from = folder / requirements.name
    if not made_from.exists() or made_from.read_bytes() != requirements.read_bytes():
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(folder)], check=True)
        subprocess.run([str(interpreter), "-m", "pip", "install", "-qq", "-r", str(requirements)], check=True)
        made_from.write_bytes(requirements.read_bytes())
    return str(interpreter)
