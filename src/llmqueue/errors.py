"""The errors of llmqueue.

LlmqueueError                     base; the message names what failed, where, and the remedy; has an exit code
 ├─ UsageError                    2  wrong option, setting or input
 └─ Failure                       1  the requested action failed
     ├─ DatabaseUnreachable          down, starting, or no route to it; a worker waits for it
     │   ├─ DatabaseUnable           it answers but cannot write now (read-only, a standby, no space); a worker waits
     │   └─ DatabaseSilent           a statement had no answer in time: it is too large, or the connection is dead
     ├─ DatabaseRefused              wrong password, missing database or role
     ├─ NotInitialised               `llmqueue init` has not run, or has not finished
     ├─ SchemaTooNew                 a newer llmqueue has upgraded the schema
     ├─ AdoptionRefused              the table cannot be adopted as it is
     └─ SqlError                     a statement failed; has its SQLSTATE (LQ001 … if our own SQL raised it)
         ├─ WrongIsolation           LQ001: claim() outside READ COMMITTED
         ├─ UnknownWorker            LQ002: the worker is not registered, or was swept
         └─ SchemaOutgrown           a newer llmqueue has upgraded the schema under a running worker
"""

from __future__ import annotations

from typing import ClassVar


class LlmqueueError(Exception):
    """The base of all errors that the user sees as one message without a traceback."""

    exit_code: ClassVar[int] = 1


class UsageError(LlmqueueError):
    exit_code: ClassVar[int] = 2


class Failure(LlmqueueError):
    pass


class DatabaseUnreachable(Failure):
    pass


class DatabaseUnable(DatabaseUnreachable):
    pass


class DatabaseSilent(DatabaseUnreachable):
    pass


class DatabaseRefused(Failure):
    pass


class NotInitialised(Failure):
    pass


class SchemaTooNew(Failure):
    pass


class AdoptionRefused(Failure):
    pass


class SqlError(Failure):
    """A statement failed although the database answers (a deadlock, no space, no right); retry it later."""

    sqlstate: str = "LQ000"

    def __init__(self, message: str, sqlstate: str | None = None) -> None:
        super().__init__(message)
        self.sqlstate = sqlstate or type(self).sqlstate


class WrongIsolation(SqlError):
    """claim() ran outside READ COMMITTED (I1)."""

    sqlstate = "LQ001"


class UnknownWorker(SqlError):
    """The worker is not registered, or was swept; it has to register again."""

    sqlstate = "LQ002"


class SchemaOutgrown(SqlError):
    """A worker's statement failed because a newer llmqueue has upgraded the schema; the worker has to drain and end."""


BY_SQLSTATE: dict[str, type[SqlError]] = {c.sqlstate: c for c in (WrongIsolation, UnknownWorker)}
