"""Connections to the database, and the errors when a connection fails.

Every message names what failed, where, and the remedy; none contains a password. `classify()` alone decides whether a
worker waits for the end of an error (DatabaseUnreachable) or ends (DatabaseRefused, NotInitialised …).
"""

from __future__ import annotations

import asyncio
import re
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING

import anyio
import psycopg
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from llmqueue.embedded import server as embedded
from llmqueue.errors import (
    BY_SQLSTATE,
    DatabaseRefused,
    DatabaseUnable,
    DatabaseUnreachable,
    Failure,
    LlmqueueError,
    NotInitialised,
    SchemaTooNew,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from psycopg.rows import TupleRow

    from llmqueue.settings import Settings

CONNECT_TIMEOUT_S = 10
# A half-open connection raises no error by itself. With these the kernel closes it after 15 s without an
# acknowledgement.
KEEPALIVES = {
    "keepalives": 1,
    "keepalives_idle": 10,
    "keepalives_interval": 3,
    "keepalives_count": 3,
    "tcp_user_timeout": 15000,
}
# How long a request to cancel a statement may take.
CANCEL_S = 2.0
SETTING = "LLMQUEUE_DATABASE_URL"

# Settings that the database or the role may have changed. A transaction pooler does not pass them on: the last one
# shows whether there is a pooler.
SESSION = " ".join(
    f"-c {setting}"
    for setting in (
        r"default_transaction_isolation=read\ committed",
        "datestyle=ISO",
        "intervalstyle=postgres",
        "idle_session_timeout=0",
        "statement_timeout=15s",
        "llmqueue.session=own",
    )
)
# the messages of PgBouncer up to 1.19, of PgBouncer from 1.20 on (which reads the options), and of other poolers
OPTIONS_REFUSED = re.compile(r"unsupported (options )?startup parameter")

# SQLSTATEs that a worker waits out as if the database were unreachable. Class 53, insufficient resources, is another.
UNABLE = {
    "25006": f"it is a standby or set read-only. After a failover {SETTING} must lead to the new primary, for example "
    "with both hosts and target_session_attrs=read-write",
    "58030": "an input/output error of the server: see its log",
}

# libpq reports a failed connection as text only, without a SQLSTATE. The first match decides.
UNREACHABLE = (
    (r"the database system is (starting up|not yet accepting|in recovery)", "it is starting up"),
    (r"the database system is shutting down", "it is shutting down"),
    (r"too many (clients|connections)|remaining connection slots", "it has no free connection"),
    (r"Connection refused", "connection refused"),
    (r"could not translate host name|Name or service not known|getaddrinfo|resolve host", "unknown host name"),
    (r"timeout expired|timed out", "no answer in time"),
    (r"No such file or directory", "no server listens on that socket"),
    (r"server closed the connection unexpectedly|Connection reset", "it closed the connection"),
    (r"No route to host|Network is unreachable", "no route to it"),
)
WRONG_LOGIN = re.compile(
    r"authentication failed|no password supplied|no pg_hba\.conf entry|fe_sendauth|role \".*\" does not exist"
    r"|not permitted to log in|permission denied for database|role \".*\" is not permitted"
)
NO_DATABASE = re.compile(r'database "(.*)" does not exist')
WRONG_SETTING = re.compile(
    r"definition of service .* not found|certificate|sslmode|does not support SSL|invalid response to SSL negotiation"
    r"|invalid (integer|value|port)|could not open file|unsupported startup parameter"
)


def dsn(settings: Settings) -> str:
    """Returns the DSN of the database; starts the embedded PostgreSQL if LLMQUEUE_DATABASE_URL is unset."""
    if settings.database_url is None:
        return embedded.start(settings.home)
    return settings.database_url.get_secret_value()


def listen_dsn(settings: Settings, database: str) -> str:
    """Returns the DSN for LISTEN: LLMQUEUE_LISTEN_URL if it is set, else that of the database."""
    return database if settings.listen_url is None else settings.listen_url.get_secret_value()


def connect(dsn: str, *, application_name: str) -> psycopg.Connection[TupleRow]:
    """Opens an autocommit connection; raises DatabaseUnreachable or DatabaseRefused."""
    try:
        # no prepared statements: the database may be behind a pooler (design I20)
        return psycopg.connect(with_defaults(dsn, application_name), autocommit=True, prepare_threshold=None)
    except psycopg.Error as error:
        raise classify(error, dsn) from None


def with_defaults(dsn: str, application_name: str) -> str:
    """Adds the application name to a DSN, and a connect timeout unless the DSN has its own."""
    timeout = {} if "connect_timeout" in conninfo_to_dict(dsn) else {"connect_timeout": CONNECT_TIMEOUT_S}
    # UTF-8 whatever the database's encoding and PGCLIENTENCODING are, because a prompt may contain any character
    return make_conninfo(dsn, application_name=application_name, client_encoding="utf8", **timeout)


def with_keepalives(dsn: str, application_name: str) -> str:
    """Adds keepalive parameters, by which a worker detects dead connections, unless the DSN has its own."""
    given = conninfo_to_dict(with_defaults(dsn, application_name))
    return make_conninfo("", **(KEEPALIVES | given))


def with_session(dsn: str) -> str:
    """Adds the settings of a worker's session to a DSN, after the DSN's own options."""
    own = conninfo_to_dict(dsn).get("options")
    return make_conninfo(dsn, options=f"{own} {SESSION}" if own else SESSION)


def is_pooler(dsn: str) -> bool:
    """Returns whether the database is behind a pooler such as PgBouncer, which refuses or ignores session options."""
    try:
        with psycopg.connect(with_session(with_defaults(dsn, "llmqueue worker")), autocommit=True) as connection:
            row = connection.execute("select current_setting('llmqueue.session', true)").fetchone()
            return row != ("own",)
    except psycopg.Error as error:
        if OPTIONS_REFUSED.search(str(error)):
            return True
        raise classify(error, dsn) from None


@asynccontextmanager
async def deadline(connection: psycopg.AsyncConnection[TupleRow], timeout_s: float) -> AsyncIterator[None]:
    """Raises TimeoutError if the block takes longer; then the statement is cancelled, or the connection closed.

    The request to cancel uses another connection, which may hang like the first. After CANCEL_S the first connection is
    closed at once (psycopg does that if it is interrupted while it cancels).
    """
    cancelling: set[asyncio.Task[None]] = set()
    # a timer instead of a sleeping task: each claim and each flush needs one, and it almost never fires
    timer = asyncio.get_running_loop().call_later(
        timeout_s, lambda: cancelling.add(asyncio.create_task(_cancel(connection)))
    )
    try:
        with anyio.fail_after(timeout_s + CANCEL_S):
            yield
            if cancelling:  # the statement ended by itself meanwhile; the request must not cancel the next one
                await asyncio.wait(cancelling)
    except psycopg.errors.QueryCanceled as error:
        raise TimeoutError from error
    finally:
        timer.cancel()
        for task in cancelling:
            task.cancel()
            with anyio.CancelScope(shield=True):
                await asyncio.wait([task])


async def _cancel(connection: psycopg.AsyncConnection[TupleRow]) -> None:
    with suppress(psycopg.Error):
        await connection.cancel_safe(timeout=CANCEL_S)


def require_schema(conn: psycopg.Connection[TupleRow]) -> None:
    """Raises NotInitialised or SchemaTooNew unless this program fits the schema."""
    database = conn.info.dbname
    if conn.execute("select to_regnamespace('llmqueue') is null").fetchone() == (True,):
        raise NotInitialised(f'database "{database}" has no llmqueue schema. Run: llmqueue init')
    try:
        is_complete = conn.execute("select is_complete from llmqueue.mapping").fetchone()
        has = conn.execute("select coalesce(max(version), 0) from llmqueue.schema_version").fetchone()
    except psycopg.errors.UndefinedTable:
        is_complete, has = None, (0,)
    except psycopg.errors.InsufficientPrivilege:
        raise DatabaseRefused(
            f'user "{conn.info.user}" has no rights on schema llmqueue of database "{database}". '
            "Connect as the role that ran llmqueue init, or a member of it"
        ) from None
    if has is not None and has[0] > (knows := newest_version()) and not _is_still_served(conn, knows):
        raise SchemaTooNew(
            f'database "{database}" has llmqueue schema version {has[0]}, this llmqueue knows {knows}. '
            "Upgrade llmqueue."
        )
    if is_complete != (True,):
        raise NotInitialised(f'the llmqueue schema of database "{database}" is not finished: run llmqueue init again')
    if has is not None and has[0] < knows:
        raise NotInitialised(
            f'database "{database}" has llmqueue schema version {has[0]}, this llmqueue needs {knows}. '
            "Run: llmqueue init"
        )


def _is_still_served(conn: psycopg.Connection[TupleRow], knows: int) -> bool:
    """Returns whether a newer schema serves programs that know version `knows` (docs/architecture.md, Upgrades)."""
    try:
        oldest = conn.execute("select llmqueue.oldest_program()").fetchone()
    except psycopg.errors.UndefinedFunction:
        return False
    return oldest is not None and oldest[0] <= knows


def newest_version() -> int:
    """Returns the newest schema version that this program knows: the number of its last migration."""
    from llmqueue.db.resources import sql_dir  # noqa: PLC0415 - most users of this module do not need it

    names = (file.name for file in (sql_dir() / "schema").iterdir())
    return max(int(name[:4]) for name in names if re.match(r"\d{4}_", name))


def classify(error: psycopg.Error, dsn: str) -> LlmqueueError:
    """Returns our error for an error of the driver, with the remedy in its message."""
    if error.sqlstate is not None:
        return _classify_sqlstate(error, error.sqlstate, dsn)
    text = str(error)
    if match := NO_DATABASE.search(text):
        return DatabaseRefused(f'there is no database "{match[1]}" {place(dsn)}. Create it, or check {SETTING}.')
    if WRONG_LOGIN.search(text):
        return DatabaseRefused(_refused_login(text, dsn))
    if "FATAL" not in text and WRONG_SETTING.search(text):
        return DatabaseRefused(f"cannot connect to the database {place(dsn)}: {_detail(text)}. Check {SETTING}.")
    for pattern, reason in UNREACHABLE:
        if re.search(pattern, text):
            return _unreachable(reason, dsn)
    return _unreachable(_detail(text), dsn)


def _classify_sqlstate(error: psycopg.Error, sqlstate: str, dsn: str) -> LlmqueueError:
    message = error.diag.message_primary or _detail(str(error))
    if sqlstate in BY_SQLSTATE:
        return BY_SQLSTATE[sqlstate](message)
    if sqlstate.startswith(("08", "57P")) or sqlstate == "53300":
        return _unreachable(message, dsn)
    if sqlstate in UNABLE or sqlstate[:2] == "53":
        remedy = UNABLE.get(sqlstate, "work continues by itself once there is room")
        return DatabaseUnable(f"the database {place(dsn)} cannot write now: {message}; {remedy}")
    if sqlstate == "3D000" or sqlstate.startswith("28"):
        is_missing = sqlstate == "3D000"
        return DatabaseRefused(
            f"{message}. Create it, or check {SETTING}." if is_missing else _refused_login(message, dsn)
        )
    if sqlstate in {"3F000", "42P01", "42883"} and "llmqueue" in message:
        return NotInitialised(f"{message}: run llmqueue init")
    if sqlstate == "42501":
        return Failure(f"the database does not allow it: {message}")
    return Failure(f"the database says: {message} (SQLSTATE {sqlstate})")


def _unreachable(reason: str, dsn: str) -> DatabaseUnreachable:
    return DatabaseUnreachable(f"cannot reach the database {place(dsn)}: {reason}. Is it running? Check {SETTING}.")


def _refused_login(text: str, dsn: str) -> str:
    user = _parameters(dsn).get("user")
    who = f'user "{user}"' if user else "the user"
    return f"the database {place(dsn)} refused {who}: {_detail(text)}. Check user and password in {SETTING}."


def place(dsn: str) -> str:
    """Returns where the database is, for messages: `at host db.example port 5432`, or `of service NAME`."""
    parameters = _parameters(dsn)
    if "host" not in parameters and "hostaddr" not in parameters and "service" in parameters:
        return f"of service {parameters['service']}"
    host = parameters.get("host") or parameters.get("hostaddr")
    if host is None:
        return "at the local socket"
    if host.startswith(("/", "@")):
        return f"at socket {host}"
    return f"at host {host} port {parameters.get('port') or 5432}"


def _parameters(dsn: str) -> dict[str, str]:
    """Returns the connection parameters of a DSN, completed from libpq's environment (PGHOST …)."""
    environment = {
        option.keyword.decode(): option.val.decode()
        for option in psycopg.pq.Conninfo.get_defaults()
        if option.val is not None
    }
    given = {name: str(value) for name, value in conninfo_to_dict(dsn).items() if value is not None}
    if "service" in given:
        environment = {}  # the service file overrides the environment, and only libpq reads that file
    return environment | given


def _detail(text: str) -> str:
    """Returns the reason from a message of libpq, as one line without a full stop."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    last = next((line for line in reversed(lines) if "FATAL:" in line or "failed:" in line), lines[0] if lines else "")
    last = re.sub(r"^.*FATAL:\s*|^.*failed:\s*|^connection is bad:\s*", "", last)
    return last.rstrip(". ") or "no reason given"
