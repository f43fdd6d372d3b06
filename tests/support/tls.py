"""A Postgres that listens on TCP with a password, and with TLS by a certificate of our own authority.

The wheel's PostgreSQL is built without TLS. Debian's 15 has it and is used if it is installed.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psycopg
import trustme
from psycopg.conninfo import make_conninfo

from tests.support import processes
from tests.support.server import Server, control, start_server


@dataclass(frozen=True)
class TlsServer:
    server: Server
    port: int
    ca: Path  # of the authority that signed the server's certificate
    other_ca: Path  # of an authority that did not
    has_tls: bool

    def admin(self, database: str = "postgres") -> str:
        """Returns the superuser's DSN over the socket, without a password."""
        return make_conninfo(self.server.dsn(database), port=self.port)

    def dsn(self, user: str, password: str, **more: str) -> str:
        given: dict[str, str | int] = {
            "host": "localhost",
            "port": self.port,
            "dbname": "postgres",
            "user": user,
            "password": password,
        }
        tls = {"sslmode": "verify-full", "sslrootcert": str(self.ca)} if self.has_tls else {"sslmode": "disable"}
        return make_conninfo("", **{**given, **tls, **more})


@contextmanager
def start_tls_server(version: int, folder: Path) -> Iterator[TlsServer]:
    authority, other = trustme.CA(), trustme.CA()
    ca, other_ca = folder / "ca.pem", folder / "other-ca.pem"
    authority.cert_pem.write_to_path(ca)
    other.cert_pem.write_to_path(other_ca)
    certificate = authority.issue_cert("localhost")
    with start_server(version) as server:
        for name, blob in (
            ("server.crt", certificate.cert_chain_pems[0]),
            ("server.key", certificate.private_key_pem),
        ):
            path = server.data_path / name
            blob.write_to_path(path)
            shutil.chown(path, server.data_path.owner(), server.data_path.group())
            path.chmod(0o600)
        with psycopg.connect(server.dsn(), autocommit=True) as conn:
            has_tls = True
            try:
                conn.execute("alter system set ssl = on")
            except psycopg.errors.InvalidParameterValue:
                has_tls = False
            kind = "hostssl" if has_tls else "host"
            rules = [f"{kind} all all {loopback} scram-sha-256\n" for loopback in ("127.0.0.1/32", "::1/128")]
            (server.data_path / "pg_hba.conf").write_text("".join(["local all all trust\n", *rules]))
            conn.execute("alter system set password_encryption = 'scram-sha-256'")
        port = processes.free_port()
        control(server, "stop", "-m", "fast")
        _start_on_tcp(server, port)
        yield TlsServer(server, port, ca, other_ca, has_tls)


def _start_on_tcp(server: Server, port: int) -> None:
    """As control() starts it, on a port of its own and with TCP."""
    owner = server.data_path.owner()
    options = f"-h localhost -k {server.host} -p {port}"
    command = [str(server.bin_path / "pg_ctl"), "-w", "-D", str(server.data_path), "-o", options]
    command += ["-l", str(server.data_path / "log"), "start"]
    user = owner if os.geteuid() == 0 else None
    subprocess.run(command, check=True, user=user, stdout=subprocess.DEVNULL, cwd=server.data_path.parent)
