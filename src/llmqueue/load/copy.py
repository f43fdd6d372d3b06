"""Inserts tasks into the user's table by COPY, in batches that are committed one by one.

A batch that fails is halved until the failing row is found, so an error of an owner's trigger, a CHECK or a foreign key
names one line, and the other lines are inserted. After any interruption the lines up to `Added.last_line` are
processed, and none after it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import groupby
from typing import TYPE_CHECKING

import psycopg
from psycopg import sql

from llmqueue.errors import Failure
from llmqueue.load.reader import BadLine, Row

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from psycopg.rows import TupleRow

    from llmqueue.db.mapping import Mapping

# Large enough that the cost of commits does not matter (5,000 rows take 50 ms), small enough for memory.
BATCH_ROWS = 5000
BATCH_CHARACTERS = 16_000_000

# If none of this many rows can be written one by one, the table is at fault and not the rows.
HOPELESS_AFTER = 100

# Classes of SQLSTATE that no single row causes, the same as in llmqueue_internal.is_row_fault().
NOT_THE_ROW = frozenset({"08", "25", "28", "40", "42", "53", "55", "57", "58", "F0", "XX", "LQ"})


@dataclass(slots=True)
class Added:
    """The progress so far; everything counted here is committed."""

    rows: int = 0
    bad: int = 0
    last_line: int = 0


@dataclass(slots=True)
class Producer:
    """Writes rows into the table of `mapping`.

    Calls `on_bad` for every line that is not inserted, and `on_batch` after every commit.
    """

    conn: psycopg.Connection[TupleRow]
    mapping: Mapping
    on_bad: Callable[[BadLine], None]
    on_batch: Callable[[Added], None] = lambda _added: None
    added: Added = field(default_factory=Added)
    _failures: list[str] = field(default_factory=list)

    def add(self, lines: Iterable[Row | BadLine]) -> Added:
        """Inserts all rows. Raises Failure if no row at all can be written; committed rows stay."""
        batch: list[Row] = []
        size = 0
        line = 0
        for item in lines:
            line = item.line
            if isinstance(item, BadLine):
                self._bad(item)
                continue
            batch.append(item)
            size += len(item.cells["prompt"])
            if len(batch) >= BATCH_ROWS or size >= BATCH_CHARACTERS:
                self._write_batch(batch)
                batch, size = [], 0
        self._write_batch(batch)
        self.added.last_line = max(line, self.added.last_line)
        return self.added

    def _write_batch(self, batch: list[Row]) -> None:
        new = self._without_known_ids(batch)
        if new:
            self._write(new)
        if batch:
            self.added.last_line = batch[-1].line
            self.on_batch(self.added)

    def _without_known_ids(self, batch: list[Row]) -> list[Row]:
        """Removes rows whose id exists already, in the table or the batch, so that adding a file twice is fast."""
        given = [row for row in batch if "id" in row.cells]
        if not given:
            return batch
        try:
            found = self.conn.execute(
                "select p.given from unnest(%s::text[]) p(given) "
                "join llmqueue.task t on t.id = (p.given::llmqueue.task_id)",
                [[row.cells["id"] for row in given]],
            ).fetchall()
        except psycopg.DataError:  # one id is no valid key: it is found row by row
            return batch
        known = {str(key) for (key,) in found}
        new: list[Row] = []
        for row in batch:
            key = row.cells.get("id")
            if key is not None and key in known:
                self._bad(BadLine(row.line, f'the id "{key}" exists already'))
                continue
            if key is not None:
                known.add(key)
            new.append(row)
        return new

    def _write(self, rows: list[Row]) -> None:
        try:
            with self.conn.transaction():
                # One COPY per set of columns: COPY has one list of columns, and omitted columns get their defaults.
                by_shape = sorted(rows, key=_shape)
                for columns, group in groupby(by_shape, key=_shape):
                    self._copy(columns, group)
        except psycopg.Error as error:
            if not is_row_fault(error):
                raise
            if len(rows) == 1:
                self._refused(rows[0], error)
                return
            half = len(rows) // 2
            self._write(rows[:half])
            self._write(rows[half:])
        else:
            self.added.rows += len(rows)
            self.added.last_line = rows[-1].line

    def _copy(self, columns: Sequence[str], rows: Iterable[Row]) -> None:
        theirs = [self.mapping.column(name) for name in columns]
        constants: list[str] = []
        if not self.mapping.own_status:
            theirs.append(self.mapping.column("status"))
            constants.append(self.mapping.words["unsolved"])
        elif self.mapping.owner_status_column is not None and self.mapping.queued_value is not None:
            theirs.append(self.mapping.owner_status_column)
            constants.append(self.mapping.queued_value)
        statement = sql.SQL("copy {} ({}) from stdin").format(
            self.mapping.table, sql.SQL(", ").join(map(sql.Identifier, theirs))
        )
        with self.conn.cursor() as cursor, cursor.copy(statement) as copy:
            for row in rows:
                copy.write_row([*(row.cells[name] for name in columns), *constants])

    def _refused(self, row: Row, error: psycopg.Error) -> None:
        reason = error.diag.message_primary or str(error)
        self._bad(BadLine(row.line, reason))
        if self.added.rows == 0:
            self._failures.append(reason)
        if len(self._failures) >= HOPELESS_AFTER and self.added.rows == 0:
            raise Failure(
                f"stopped at line {row.line}: none of the first {HOPELESS_AFTER} rows could be written to "
                f"{self.mapping.label}: {reason}"
            )

    def _bad(self, line: BadLine) -> None:
        self.added.bad += 1
        self.on_bad(line)


def _shape(row: Row) -> tuple[str, ...]:
    return tuple(row.cells)


def is_row_fault(error: psycopg.Error) -> bool:
    """Returns whether the written row caused the error (a trigger, a CHECK, a value), and not the database."""
    return error.sqlstate is not None and error.sqlstate[:2] not in NOT_THE_ROW


def key_has_default(conn: psycopg.Connection[TupleRow], mapping: Mapping) -> bool:
    """Returns whether the table generates keys (by a default or an identity column)."""
    row = conn.execute(
        """
        select a.atthasdef or a.attidentity <> ''
          from pg_attribute a join pg_class c on c.oid = a.attrelid join pg_namespace n on n.oid = c.relnamespace
         where n.nspname = %s and c.relname = %s and a.attname = %s
        """,
        [mapping.table_schema, mapping.table_name, mapping.column("id")],
    ).fetchone()
    return row is not None and bool(row[0])
