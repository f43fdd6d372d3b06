"""The reaper of the embedded PostgreSQL: stops the server after the last process that uses it has ended.

`python -m llmqueue.embedded.reaper HOME PSQL` moves itself into the background, into a session of its own. server.py
starts it and explains the locks. It imports only the standard library, because it may run for weeks.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

# postgres.keeper: the name of earlier releases; under another name, two reapers could run after an upgrade.
USERS_LOCK, START_LOCK, REAPER_LOCK = "postgres.users", "postgres.start", "postgres.keeper"

# Long enough for the next command of a script or a person, short enough not to surprise.
LINGER_S = 10.0
OTHER_CLIENTS_S = 15.0
STOP_TIMEOUT_S = 60.0

OTHER_CLIENTS = """
    select count(*) from pg_stat_activity where backend_type = 'client backend' and pid <> pg_backend_pid()
"""


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Waits for an exclusive lock on the file `path` and holds it. The kernel releases it if this process dies."""
    with path.open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


@contextmanager
def locked_at_once(path: Path) -> Iterator[bool]:
    """Like `locked`, but does not wait. Yields whether the lock was free."""
    with path.open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield True


def running(home: Path) -> tuple[int, Path] | None:
    """Returns the process id and the socket folder of the running server of `home`, or None.

    A postmaster.pid alone is no proof: after a crash another process may have its number.
    """
    data = home / "postgres"
    try:
        lines = (data / "postmaster.pid").read_text(encoding="utf-8", errors="surrogateescape").splitlines()
        pid, socket_folder = int(lines[0]), Path(lines[4])
    except (FileNotFoundError, IndexError, ValueError):
        return None
    return (pid, socket_folder) if _is_postmaster(pid, data) else None


def _is_postmaster(pid: int, data: Path) -> bool:
    import psutil  # noqa: PLC0415 - large, and the reaper needs it once or twice

    try:
        process = psutil.Process(pid)
        return process.status() != psutil.STATUS_ZOMBIE and Path(process.cwd()) == data.resolve()
    except psutil.Error:
        return False


def reap(home: Path, psql: str) -> None:
    """Waits until nobody uses the server of `home`, stops it, and returns."""
    while True:
        with locked(home / USERS_LOCK):
            pass  # the last user has ended; new ones may start during the pause
        time.sleep(LINGER_S)
        with locked(home / START_LOCK), locked_at_once(home / USERS_LOCK) as nobody_came:
            if not nobody_came:
                continue
            server = running(home)
            if server is None:
                return
            pid, socket_folder = server
            if not _has_other_clients(psql, socket_folder):
                _stop(pid, home, socket_folder)
                return
        time.sleep(OTHER_CLIENTS_S)


def _has_other_clients(psql: str, socket_folder: Path) -> bool:
    command = [psql, "-h", str(socket_folder), "-p", "5432", "-U", "postgres", "-d", "postgres", "-AtXc"]
    try:
        done = subprocess.run([*command, OTHER_CLIENTS], capture_output=True, check=False, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return False
    return done.stdout.strip() not in {b"", b"0"}


def _stop(pid: int, home: Path, socket_folder: Path) -> None:
    """Tells the server to stop ("fast": it closes its connections and writes a checkpoint) and waits for its end."""
    os.kill(pid, signal.SIGINT)
    give_up_at = time.monotonic() + STOP_TIMEOUT_S
    while running(home) and time.monotonic() < give_up_at:
        time.sleep(0.05)
    if socket_folder.parent == Path("/tmp"):  # noqa: S108 - server.py creates it for a data folder with a long path
        shutil.rmtree(socket_folder, ignore_errors=True)


def main() -> None:
    home, psql = Path(sys.argv[1]), sys.argv[2]
    with locked_at_once(home / REAPER_LOCK) as is_the_only_one:
        if not is_the_only_one:
            return
        if os.fork() > 0:
            os._exit(0)  # the lock stays with the child
        os.setsid()
        os.chdir("/")
        nothing = os.open(os.devnull, os.O_RDWR)
        for stream in (0, 1, 2):
            os.dup2(nothing, stream)
        reap(home, psql)


if __name__ == "__main__":
    main()
