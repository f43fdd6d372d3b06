"""PgBouncer before a test's server, in transaction mode: Debian's package pgbouncer."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psycopg
import pytest
from psycopg.conninfo import make_conninfo

from tests.support.eventually import eventually
from tests.support.server import Server

PORT = 6432  # only part of the socket's name
INI = """
[databases]
{database} = host={host} port={port} dbname={database}
[pgbouncer]
unix_socket_dir = {folder}
listen_port = {listen_port}
pool_mode = transaction
default_pool_size = 4
max_client_conn = 100
auth_type = trust
auth_file = {folder}/users
admin_users = {user}
logfile = {folder}/log
pidfile = {folder}/pid
ignore_startup_parameters = {ignored}
"""


@dataclass(frozen=True)
class Bouncer:
    folder: Path
    user: str
    database: str

    @property
    def log(self) -> str:
        return (self.folder / "log").read_text()

    def dsn(self, database: str | None = None) -> str:
        return make_conninfo(host=str(self.folder), port=PORT, user=self.user, dbname=database or self.database)


@contextmanager
def bouncer_of(server: Server, database: str, *, swallows_options: bool = False) -> Iterator[Bouncer]:
    """Yields a running PgBouncer; skips the test if it is not installed. It refuses to run as root."""
    program = shutil.which("pgbouncer", path=os.defpath + ":/usr/sbin:/usr/local/sbin")
    if program is None:
        pytest.skip("no pgbouncer here (Debian: apt-get install pgbouncer)")
    folder = Path(tempfile.mkdtemp(prefix="llmqueue-bouncer-"))
    user = server.data_path.owner() if os.geteuid() == 0 else None
    bouncer = Bouncer(folder, server.user, database)
    ignored = "extra_float_digits, options" if swallows_options else "extra_float_digits"
    values = {"database": database, "host": server.host, "port": server.port, "folder": folder, "user": server.user}
    (folder / "ini").write_text(INI.format(**values, listen_port=PORT, ignored=ignored))
    (folder / "users").write_text(f'"{server.user}" ""\n')
    folder.chmod(0o755)
    if user:
        shutil.chown(folder, user)
    with (folder / "out").open("wb") as out:
        process = subprocess.Popen([program, str(folder / "ini")], user=user, stdout=out, stderr=out)
    try:
        eventually(lambda: _answers(bouncer))
        yield bouncer
    finally:
        process.terminate()
        process.wait(20)
        shutil.rmtree(folder, ignore_errors=True)


def _answers(bouncer: Bouncer) -> bool:
    try:
        psycopg.connect(bouncer.dsn(), prepare_threshold=None).close()
    except psycopg.OperationalError:
        return False
    return True
