"""The errors of llmqueue.

LlmqueueError                     message says what, where and what to do; exit_code
 ├─ UsageError                    2  wrong option, setting or input
 └─ Failure                       1  the thing asked for failed
     ├─ DatabaseUnreachable          down, starting, or no route to it; a worker waits for it
     │   ├─ DatabaseUnable           it answers, but cannot write now: read-only, a standby, no space; waited for too
     │   └─ DatabaseSilent             a statement was not answered in time: it may be too large, or the connection dead
     ├─ DatabaseRefused              wrong password, missing database or role
     ├─ NotInitialised               `llmqueue init` has not run, or has not finished
     ├─ SchemaTooNew                 a newer llmqueue has upgraded the schema
     ├─ AdoptionRefused              the table cannot be adopted as it is
     └─ SqlError                     a statement failed; by SQLSTATE when our own SQL raised it (LQ001 …)
         └─ SchemaOutgrown           … because a newer llmqueue has upgraded the schema under a running worker
"""

from __future__ import annotations

from typing import ClassVar


class LlmqueueError(Exception):
    """The base of all errors shown to a user as one message without a traceback."""

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
    """A statement failed though the database answers (a deadlock, no space, no right): worth another try later."""

    sqlstate: str = "LQ000"

    def __init__(self, message: str, sqlstate: str | None = None) -> None:
        super().__init__(message)
        self.sqlstate = sqlstate or type(self).sqlstate


class WrongIsolation(SqlError):
    """claim() runs under READ COMMITTED only (design I1)."""

    sqlstate = "LQ001"


class UnknownWorker(SqlError):
    """The worker is not registered, or was swept; it registers anew."""

    sqlstate = "LQ002"


class SchemaOutgrown(SqlError):
    """A statement of a running worker failed, and a newer llmqueue has upgraded the schema: it has to end, in order."""


BY_SQLSTATE: dict[str, type[SqlError]] = {c.sqlstate: c for c in (WrongIsolation, UnknownWorker)}
