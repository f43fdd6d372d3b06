"""The mapping of the user's table: the one row of llmqueue.mapping."""

from __future__ import annotations

from dataclasses import dataclass

import psycopg
from psycopg import sql
from psycopg.rows import TupleRow, class_row

from llmqueue.errors import NotInitialised


@dataclass(frozen=True, slots=True)
class Mapping:
    """The adopted table. Types are base types without a length, as SQL text for use in a cast."""

    table_schema: str
    table_name: str
    columns: dict[str, str]  # our name -> the owner's column; with own_status `status` is our own column
    words: dict[str, str]  # our status -> the value in the `status` column
    own_status: bool
    owner_status_column: str | None  # with own_status: the owner's status column; None if the table has none
    queued_value: str | None  # with own_status: the values of the owner's status column
    done_value: str | None
    key_type: str
    prompt_type: str
    answer_type: str
    status_type: str  # type of the column that `words` are written to
    owner_status_type: str | None
    prompt_is_json: bool
    answer_is_json: bool
    is_complete: bool

    @property
    def table(self) -> sql.Identifier:
        """The table's name for composing SQL."""
        return sql.Identifier(self.table_schema, self.table_name)

    @property
    def label(self) -> str:
        """The table's name as SQL text, for messages and plans."""
        return f"{quoted(self.table_schema)}.{quoted(self.table_name)}"

    def column(self, name: str) -> str:
        """Return the owner's column for one of our names."""
        return self.columns[name]


def quoted(name: str) -> str:
    """Return an identifier as a person would write it in SQL: in double quotes only if it needs them."""
    plain = name.isascii() and name.replace("_", "a").isalnum() and name == name.lower() and not name[0].isdigit()
    return name if plain else '"' + name.replace('"', '""') + '"'


def find_mapping(conn: psycopg.Connection[TupleRow]) -> Mapping | None:
    """Return the mapping, complete or not; None if no `init` has begun in this database."""
    known = conn.execute("select to_regclass('llmqueue.mapping') is not null").fetchone()
    if known is None or not known[0]:
        return None
    with conn.cursor(row_factory=class_row(Mapping)) as cursor:
        return cursor.execute(
            """
            select table_schema, table_name, columns, words, own_status, owner_status_column, queued_value, done_value,
                   key_type, prompt_type, answer_type, status_type, owner_status_type, prompt_is_json, answer_is_json,
                   is_complete
            from llmqueue.mapping
            """
        ).fetchone()


def read_mapping(conn: psycopg.Connection[TupleRow]) -> Mapping:
    """Return the mapping of a finished `init`.

    Raises:
        NotInitialised: no `init` has run in this database, or it has not finished.
    """
    mapping = find_mapping(conn)
    if mapping is None:
        msg = "this database has no llmqueue yet: run `llmqueue init` (with --dry-run it only shows its plan)."
        raise NotInitialised(msg)
    if not mapping.is_complete:
        msg = f"`llmqueue init` has not finished on {mapping.label}: run it again, it continues where it stopped."
        raise NotInitialised(msg)
    return mapping
