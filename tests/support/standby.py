"""A standby of a test's server, by pg_basebackup and streaming; it can be cut off and promoted."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg

from tests.support.eventually import eventually
from tests.support.server import Server, control


@contextmanager
def standby_of(primary: Server) -> Iterator[Server]:
    """Yields an asynchronous streaming standby that has caught up with the primary."""
    folder = Path(tempfile.mkdtemp(prefix="llmqueue-standby-"))
    owner = primary.data_path.owner()
    user = owner if os.geteuid() == 0 else None
    folder.chmod(0o755)
    if user:
        shutil.chown(folder, user)
    standby = Server(str(folder), primary.port, primary.version, primary.bin_path, folder / "data")
    backup = ["-h", primary.host, "-p", str(primary.port), "-U", primary.user, "-c", "fast", "-X", "stream", "-R"]
    command = [str(primary.bin_path / "pg_basebackup"), *backup, "-D", str(standby.data_path)]
    subprocess.run(command, check=True, user=user, cwd=folder, stdout=subprocess.DEVNULL)
    control(standby, "start")
    try:
        _wait_until_caught_up(primary)
        yield standby
    finally:
        control(standby, "stop", "-m", "immediate")
        shutil.rmtree(folder, ignore_errors=True)


def cut_off(standby: Server) -> None:
    """Stops the streaming: transactions committed from now on would be lost with the primary."""
    with psycopg.connect(standby.dsn(), autocommit=True) as conn:
        conn.execute("alter system set primary_conninfo = ''")
        conn.execute("select pg_reload_conf()")
        eventually(lambda: conn.execute("select count(*) from pg_stat_wal_receiver").fetchone() == (0,))


def promote(standby: Server) -> None:
    control(standby, "promote")


def _wait_until_caught_up(primary: Server) -> None:
    query = "select bool_and(replay_lsn >= pg_current_wal_lsn()) from pg_stat_replication"
    with psycopg.connect(primary.dsn(), autocommit=True) as conn:
        eventually(lambda: conn.execute(query).fetchone() == (True,))
