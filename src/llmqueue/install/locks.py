"""Runs a step without blocking others: waits briefly for its locks, gives up, and tries again later."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from typing import Final

import psycopg

from llmqueue.errors import AdoptionRefused, Failure
from llmqueue.install.steps import LOCK_TIMEOUT_MS, LONGEST_LOCK_TIMEOUT_MS, Step
from llmqueue.install.table import Connection

Report = Callable[[str], None]

_FIRST_PAUSE_S: Final = 0.1
_LONGEST_PAUSE_S: Final = 5.0
_REPORT_EVERY_S: Final = 10.0
# Allows one init at a time. The number is "llmqueue" in ASCII.
_ADVISORY_KEY: Final = 0x6C6C6D7175657565

_BLOCKERS: Final = r"""
    select a.pid, coalesce(a.state, a.backend_type),
           coalesce(extract(epoch from clock_timestamp() - a.xact_start), 0)::int,
           regexp_replace(left(coalesce(nullif(a.query, ''), a.backend_type), 80), '\s+', ' ', 'g')
    from pg_stat_activity a
    where a.pid <> pg_backend_pid() and a.pid in (
        select l.pid from pg_locks l
        where l.granted and l.relation = to_regclass(%s))
    order by a.xact_start nulls last limit 1
"""


def run_briefly(conn: Connection, step: Step, *, table: str, lock_wait_s: float, report: Report) -> None:
    """Run a step's statements in one transaction; repeat it until its locks are free.

    Raises:
        AdoptionRefused: the locks were not free within `lock_wait_s`. The step was rolled back.
        Failure: a statement failed. The step was rolled back.
    """
    give_up_at = time.monotonic() + lock_wait_s
    report_at = 0.0
    pause_s, timeout_ms = _FIRST_PAUSE_S, LOCK_TIMEOUT_MS
    while True:
        try:
            _run(conn, step, timeout_ms)
        except (psycopg.errors.LockNotAvailable, psycopg.errors.DeadlockDetected):
            blocker = _blocker(conn, table)
        else:
            return
        now = time.monotonic()
        if now >= give_up_at:
            msg = (
                f"{step.title}: within {lock_wait_s:g} s there was always a long transaction on {table}{blocker}. "
                "This step was rolled back. End that transaction, or run init again with a longer --lock-wait."
            )
            raise AdoptionRefused(msg)
        if now >= report_at:
            report(f"waiting for the end of a long transaction on {table}{blocker}")
            report_at = now + _REPORT_EVERY_S
        time.sleep(min(pause_s * random.uniform(0.5, 1.5), max(give_up_at - now, 0)))
        pause_s = min(pause_s * 1.5, _LONGEST_PAUSE_S)
        timeout_ms = min(timeout_ms + 20, LONGEST_LOCK_TIMEOUT_MS)


def run_statement(conn: Connection, step: Step, statement: str) -> None:
    """Run one statement; turn the server's error into a message that names the step."""
    try:
        conn.execute(statement.encode())
    except (psycopg.errors.LockNotAvailable, psycopg.errors.DeadlockDetected):
        raise
    except psycopg.OperationalError:
        raise  # the connection, not the statement
    except psycopg.Error as error:
        source = statement.splitlines()[0].removeprefix("-- ")
        said = ": ".join(line for line in (error.diag.message_primary, error.diag.message_detail) if line)
        msg = (
            f"{step.title} ({source[:100]}): the database says: {(said or str(error)).rstrip('.')}. "
            "This step was rolled back; remove the cause, then run init again."
        )
        raise Failure(msg) from error


def hold_turn(conn: Connection, report: Report) -> None:
    """Wait until no other init runs on this database, and keep others out until the connection ends.

    The client polls: a session that waits inside pg_advisory_lock() holds a snapshot, and the other init's CREATE INDEX
    CONCURRENTLY would wait for that snapshot.
    """
    is_reported = False
    while True:
        row = conn.execute("select pg_try_advisory_lock(%s)", (_ADVISORY_KEY,)).fetchone()
        if row and row[0]:
            return
        if not is_reported:
            report("another llmqueue init runs on this database: waiting for its end")
            is_reported = True
        time.sleep(random.uniform(0.1, 0.4))


def _run(conn: Connection, step: Step, timeout_ms: int) -> None:
    with conn.transaction():
        conn.execute("select set_config('lock_timeout', %s, true)", (f"{timeout_ms}ms",))
        for statement in step.statements:
            run_statement(conn, step, statement)


def _blocker(conn: Connection, table: str) -> str:
    """Return `; blocked by …` for the oldest transaction with a lock on the table; empty if it has just ended."""
    row = conn.execute(_BLOCKERS, (table,)).fetchone()
    if row is None:
        return ""
    pid, state, age_s, query = row
    return f"; blocked by pid {pid} ({state}, {age_s} s): {query}"
