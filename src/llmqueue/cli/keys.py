"""Task keys as people type them, and verbs that act on many tasks at once."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from llmqueue.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import psycopg
    from psycopg.rows import TupleRow

# Rows per statement: bounds the locks that one transaction holds in the user's table.
BATCH = 1000

FUNCTIONS = {
    "restart": "select id::text from llmqueue.restart(%s::text[]::llmqueue.task_id[]) r(id)",
    "cancel": "select id::text from llmqueue.cancel(%s::text[]::llmqueue.task_id[]) c(id)",
}


@dataclass(slots=True)
class Outcome:
    """Keys that a verb was applied to, and keys whose row could not be written, with the reason."""

    applied: list[str] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)


def check_keys(conn: psycopg.Connection[TupleRow], keys: Sequence[str]) -> list[str]:
    """Returns the keys in Postgres' own spelling, each once; raises UsageError for one of the wrong type."""
    import psycopg

    checked: dict[str, None] = {}
    for key in keys:
        try:
            row = conn.execute("select (%s::text)::llmqueue.task_id::text", [key]).fetchone()
        except psycopg.DataError:
            kind = conn.execute("select key_type from llmqueue.mapping").fetchone()
            raise UsageError(f'"{key}" is no task id: the key is of type {kind[0] if kind else "?"}') from None
        if row is not None:
            checked[str(row[0])] = None
    return list(checked)


def apply(
    conn: psycopg.Connection[TupleRow], keys: Sequence[str], statement: Callable[[Sequence[str]], list[str]]
) -> Outcome:
    """Runs `statement` on the keys in batches; a batch that raises is halved down to the row that does it."""
    outcome = Outcome()
    for start in range(0, len(keys), BATCH):
        _apply(conn, keys[start : start + BATCH], statement, outcome)
    return outcome


def _apply(
    conn: psycopg.Connection[TupleRow],
    keys: Sequence[str],
    statement: Callable[[Sequence[str]], list[str]],
    outcome: Outcome,
) -> None:
    import psycopg

    from llmqueue.load.copy import is_row_fault

    try:
        with conn.transaction():
            done = statement(keys)
        outcome.applied += done
    except psycopg.Error as error:
        if not is_row_fault(error):
            raise
        if len(keys) == 1:
            outcome.failed[keys[0]] = error.diag.message_primary or str(error)
            return
        half = len(keys) // 2
        _apply(conn, keys[:half], statement, outcome)
        _apply(conn, keys[half:], statement, outcome)


def call(conn: psycopg.Connection[TupleRow], verb: str) -> Callable[[Sequence[str]], list[str]]:
    """The SQL function of a verb (`restart`, `cancel`) as something to `apply`; it returns the keys it acted on."""

    def statement(keys: Sequence[str]) -> list[str]:
        return [str(key) for (key,) in conn.execute(FUNCTIONS[verb], [list(keys)])]

    return statement
