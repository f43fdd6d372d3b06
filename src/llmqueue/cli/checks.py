"""What `llmqueue doctor` looks at: each finding says what is so and, where that is not well, what to do about it.

Nothing here changes anything, and everything is bounded: it may be asked while the fleet works.
"""

from __future__ import annotations

import ipaddress
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal
from urllib.parse import urlsplit
from uuid import uuid4

import anyio
import psycopg
from psycopg import sql
from psycopg.rows import TupleRow

from llmqueue.backend import Backend
from llmqueue.backend.health import probe
from llmqueue.db import connect
from llmqueue.errors import AdoptionRefused, Failure, LlmqueueError
from llmqueue.install.adopt import AdoptionSpec, plan

Connection = psycopg.Connection[TupleRow]
State = Literal["ok", "warning", "problem"]

# A worker's pool and listener (design I20), and a person who wants to look.
CONNECTIONS_WANTED = 8
LONG_TRANSACTION_S = 3600
LATE_SHARE = 0.05
LATE_LEAST = 20
HEARD_WITHIN_S = 5.0
PROBE_WITHIN_S = 15.0

SERVER = """
    select current_setting('server_version'), current_setting('fsync'), current_setting('max_connections')::int
               - current_setting('superuser_reserved_connections')::int
               - (select count(*)::int from pg_stat_activity where backend_type = 'client backend'),
           pg_is_in_recovery()
"""
LONGEST = """
    select pid, coalesce(usename, ''), coalesce(state, ''), extract(epoch from clock_timestamp() - xact_start)::float8
      from pg_stat_activity
     where datname = current_database() and xact_start < clock_timestamp() - make_interval(secs => %s)
       and backend_type = 'client backend'
     order by xact_start limit 1
"""
PREPARED = """
    select gid, extract(epoch from clock_timestamp() - prepared)::float8 from pg_prepared_xacts
     where database = current_database() and prepared < clock_timestamp() - make_interval(secs => %s)
     order by prepared limit 1
"""
# by the primary key: the newest attempts, at most 10,000
LATE = """
    select count(*) filter (where a.error_class = 'late_grant'), count(*)
      from (select x.error_class, x.granted_at from llmqueue.attempt x order by x.fence desc limit 10000) a
     where a.granted_at > clock_timestamp() - interval '10 minutes'
"""
WORKERS = "select name, version, state from llmqueue.worker_status order by name"
ABLE = "select count(*), count(*) filter (where not s.is_paused) from llmqueue.model_status s"


@dataclass(frozen=True, slots=True)
class Finding:
    """What one check has found; `remedy` is None where all is well."""

    check: str
    state: State
    found: str
    remedy: str | None = None


def examine_database(dsn: str, listen_dsn: str) -> Iterator[Finding]:
    """Looks at the database and what is in it; stops where the next check would have nothing to look at."""
    try:
        conn = connect.connect(dsn, application_name="llmqueue doctor")
    except LlmqueueError as error:
        yield _problem("database", error)
        return
    with conn:
        yield from _server(conn, dsn)
        yield from _transactions(conn)
        yield _listening(listen_dsn)
        try:
            connect.require_schema(conn)
        except LlmqueueError as error:
            yield _problem("schema", error)
            return
        yield _schema(dsn)
        for check in (_models, _workers, _late_grants):
            try:
                yield from check(conn)
            except psycopg.errors.InsufficientPrivilege as error:
                yield _unseen(check.__name__.strip("_").replace("_", " "), error)


async def examine_backend(backend: Backend, url: str, *, has_token: bool) -> list[Finding]:
    """Asks the backend whether it can be reached; calls no model."""
    reason: str | None = f"no answer within {PROBE_WITHIN_S:.0f} s"
    with anyio.move_on_after(PROBE_WITHIN_S):
        reason = await probe(backend)
    findings = [Finding("backend", "ok", f"{url} can be reached")]
    if reason is not None:
        remedy = "is it running, and is LLMQUEUE_BACKEND_URL right?"
        findings = [Finding("backend", "problem", f"{url} cannot be reached: {reason}", remedy)]
    if has_token and urlsplit(url).scheme == "http" and not _is_local(urlsplit(url).hostname or ""):
        found = "LLMQUEUE_BACKEND_TOKEN goes over the network in the clear"
        findings.append(Finding("backend token", "warning", found, "use an https:// address in LLMQUEUE_BACKEND_URL"))
    return findings


def _problem(check: str, error: Exception) -> Finding:
    """Our own errors hold their remedy in their message."""
    found, _, remedy = str(error).partition(". ")
    return Finding(check, "problem", found, remedy or None)


def _unseen(check: str, error: Exception) -> Finding:
    return Finding(check, "warning", f"could not be looked at: {str(error).splitlines()[0]}", "ask as another role")


def _server(conn: Connection, dsn: str) -> Iterator[Finding]:
    row = conn.execute(SERVER).fetchone()
    assert row is not None  # noqa: S101 - an aggregate always gives a row
    version, fsync, free, is_standby = row
    yield Finding("database", "ok", f"PostgreSQL {version} {connect.place(dsn)}, database {conn.info.dbname}")
    if is_standby:
        yield Finding(
            "primary", "problem", "this server is a standby: nothing can be claimed there", "connect to the primary"
        )
    if fsync == "off":
        found = "fsync is off: a power failure may lose grants and answers, or the whole database"
        yield Finding("durability", "problem", found, "alter system set fsync = on; select pg_reload_conf();")
    state: State = "ok" if free >= CONNECTIONS_WANTED else "warning"
    remedy = None if state == "ok" else "raise max_connections, or use a pooler (LLMQUEUE_LISTEN_URL)"
    yield Finding("connections", state, f"{free} of the server's connections are free; a worker uses up to 4", remedy)


def _transactions(conn: Connection) -> Iterator[Finding]:
    is_any = False
    if row := conn.execute(LONGEST, (LONG_TRANSACTION_S,)).fetchone():
        is_any = True
        pid, user, state, seconds = row
        found = f"a transaction of {user or 'another user'} (pid {pid}, {state}) is open for {seconds / 3600:.1f} h"
        effect = "nothing that died since can be vacuumed, and claims grow slower"
        yield Finding("transactions", "warning", f"{found}: {effect}", f"end it: select pg_terminate_backend({pid});")
    if row := conn.execute(PREPARED, (LONG_TRANSACTION_S,)).fetchone():
        is_any = True
        quoted = sql.Literal(row[0]).as_string(None)
        found = f"the prepared transaction {quoted} is {row[1] / 3600:.1f} h old, and holds vacuum back"
        yield Finding("transactions", "warning", found, f"commit it, or: rollback prepared {quoted};")
    if not is_any:
        yield Finding("transactions", "ok", f"none is older than {LONG_TRANSACTION_S // 3600} h")


def _listening(dsn: str) -> Finding:
    """A wake that does not ring costs up to a second per task that comes; through a pooler it never does."""
    channel = f"llmqueue_doctor_{uuid4().hex}"
    listen = sql.SQL("listen {}").format(sql.Identifier(channel))
    try:
        with connect.connect(dsn, application_name="llmqueue doctor") as conn:
            conn.execute(listen)
            with connect.connect(dsn, application_name="llmqueue doctor") as other:
                other.execute("select pg_notify(%s, '')", (channel,))
            began = time.monotonic()
            heard = list(conn.notifies(timeout=HEARD_WITHIN_S, stop_after=1))
            took_ms = 1000 * (time.monotonic() - began)
    except (psycopg.Error, Failure) as error:
        return _problem("wake-up", error if isinstance(error, Failure) else connect.classify(error, dsn))
    if heard:
        return Finding("wake-up", "ok", f"a NOTIFY was heard after {took_ms:.0f} ms")
    return Finding(
        "wake-up",
        "warning",
        "a NOTIFY was not heard: workers poll once a second instead",
        "behind a transaction pooler, set LLMQUEUE_LISTEN_URL to a direct connection",
    )


def _schema(dsn: str) -> Finding:
    """What `init` would still do: migrations, functions that were edited, indexes that are missing or invalid."""
    try:
        left = plan(dsn, AdoptionSpec())
    except AdoptionRefused as error:
        return Finding("schema", "warning", str(error), "ask as the role that ran llmqueue init")
    except LlmqueueError as error:
        return _problem("schema", error)
    if not left.steps:
        return Finding("schema", "ok", f"{left.table} is adopted, and everything is as this release wants it")
    titles = "; ".join(step.title for step in left.steps[:5])
    more = f" and {len(left.steps) - 5} more" if len(left.steps) > 5 else ""
    return Finding("schema", "problem", f"left to do: {titles}{more}", "llmqueue init")


def _models(conn: Connection) -> Iterator[Finding]:
    row = conn.execute(ABLE).fetchone()
    assert row is not None  # noqa: S101 - an aggregate always gives a row
    configured, able = row
    if able:
        yield Finding("models", "ok", f"{able} of {configured} may take tasks")
    elif configured:
        remedy = "llmqueue models resume NAME; where llmqueue models list shows a limit of 0: llmqueue models set NAME"
        yield Finding("models", "warning", f"none of {configured} may take tasks: paused, or rpm 0", remedy)
    else:
        yield Finding("models", "warning", "none is configured", "llmqueue models set NAME --rpm N")


def _workers(conn: Connection) -> Iterator[Finding]:
    found = conn.execute(WORKERS).fetchall()
    alive = [(name, version) for name, version, state in found if state != "dead"]
    dead = [name for name, _, state in found if state == "dead"]
    if not alive:
        yield Finding("workers", "warning", "none is alive", "llmqueue worker")
    else:
        yield Finding("workers", "ok", f"{len(alive)} alive")
    versions = sorted({version for _, version in alive})
    if len(versions) > 1:
        yield Finding(
            "workers", "warning", f"they are of different releases: {', '.join(versions)}", "upgrade the older"
        )
    if dead and alive:
        found_dead = f"{len(dead)} silent for longer than their lease ({', '.join(dead[:3])})"
        yield Finding("workers", "warning", found_dead, "the others take their tasks over within two leases; look why")


def _late_grants(conn: Connection) -> Iterator[Finding]:
    row = conn.execute(LATE).fetchone()
    late, recent = row or (0, 0)
    if late >= LATE_LEAST and late > LATE_SHARE * recent:
        yield Finding(
            "late grants",
            "warning",
            f"{late:,} of the last {recent:,} grants came too late to be sent, and were given back",
            "is a worker short of CPU, or the database slow or far? Run more workers with a smaller --concurrency, "
            "or raise LLMQUEUE_GUARD_S",
        )
    else:
        yield Finding("late grants", "ok", f"{late:,} of the {recent:,} grants of the last ten minutes")


def _is_local(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
