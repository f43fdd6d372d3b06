"""Checks whether llmqueue can be installed on this server by this role."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final
from urllib.parse import quote

from psycopg.rows import class_row

from llmqueue.db.mapping import quoted
from llmqueue.install.table import Connection

OLDEST: Final = 15

_SERVER: Final = """
    select current_setting('server_version_num')::int / 10000 as major, current_setting('server_version') as version,
           pg_is_in_recovery() as is_standby, current_setting('transaction_read_only')::boolean as is_read_only,
           current_database()::text as database, current_user::text as role,
           has_database_privilege(current_database(), 'create') as may_create_schema,
           to_regnamespace('llmqueue') is not null as has_schema,
           (select pg_get_userbyid(nspowner)::text from pg_namespace where nspname = 'llmqueue') as schema_owner
"""


@dataclass(frozen=True, slots=True)
class Server:
    """The session's server, database and role."""

    major: int
    version: str
    is_standby: bool
    is_read_only: bool
    database: str
    role: str
    may_create_schema: bool
    has_schema: bool
    schema_owner: str | None


def act_as(role: str) -> str:
    """Return the remedy for a session with the wrong role."""
    return f"Connect as {quoted(role)}, or add ?options=-crole%3D{quote(role)} to the URL of a member of it."


def check_server(conn: Connection) -> list[str]:
    """Return the obstacles to `init` on this server, each with its remedy."""
    with conn.cursor(row_factory=class_row(Server)) as cursor:
        server = cursor.execute(_SERVER).fetchone()
    assert server is not None  # noqa: S101 (a select without from has one row)
    return judge(server)


def judge(server: Server) -> list[str]:
    """Return the problems of this server, database and role."""
    problems: list[str] = []
    if server.major < OLDEST:
        problems.append(
            f"the server is PostgreSQL {server.version}: llmqueue needs {OLDEST} or newer. Upgrade the server."
        )
    if server.is_standby:
        problems.append("the server is a standby, where nothing can be written. Connect to the primary.")
    elif server.is_read_only:
        problems.append(
            "the session is read-only: default_transaction_read_only is on for this role, database or server. "
            "Connect as a role that may write."
        )
    database, role = quoted(server.database), quoted(server.role)
    if not server.has_schema and not server.may_create_schema:
        problems.append(
            f"the role {role} may not create a schema in database {database}. "
            f"Let its owner run: grant create on database {database} to {role};"
        )
    if server.has_schema and server.schema_owner != server.role:
        # A superuser or a member could run init, but would then own the functions, which would run with its rights.
        problems.append(
            f"the schema llmqueue belongs to the role {quoted(str(server.schema_owner))}, and this session's role is "
            f"{role}. "
            f"{act_as(str(server.schema_owner))}"
        )
    return problems
