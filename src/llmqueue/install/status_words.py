"""Checks whether the status column accepts the words that llmqueue writes, by asking the database for each CHECK."""

from __future__ import annotations

from dataclasses import dataclass

import psycopg
from psycopg import sql

from llmqueue.db.mapping import quoted
from llmqueue.install.mapping_sql import type_name
from llmqueue.install.table import Check, Column, Connection, Table


@dataclass(frozen=True, slots=True)
class Values:
    """The values that llmqueue will write, by our status, or with --own-status by option."""

    by_name: dict[str, str]
    own_status: bool

    @property
    def remedy(self) -> str:
        """The remedy if the column refuses a value."""
        if self.own_status:
            return "Name values that it takes with --queued-value and --done-value."
        return (
            "Name the words it uses with --word STATUS=VALUE, or keep the status in a column of ours with --own-status."
        )


def check_words(
    conn: Connection, table: Table, status: Column, values: Values, problems: list[str], warnings: list[str]
) -> None:
    """Add values that the column would refuse to `problems`, and CHECKs that cannot be tested to `warnings`."""
    refused = {name: value for name, value in values.by_name.items() if not _fits_type(conn, status, value)}
    if refused:
        problems.append(f"{_type_refusal(status, refused)} {values.remedy}")
    else:
        for check in table.checks:
            _check_constraint(conn, check, status, values, problems, warnings)
    if not values.own_status and status.default is None:
        name, column = f"{quoted(table.relation.schema)}.{quoted(table.relation.name)}", quoted(status.name)
        queued = values.by_name["unsolved"]
        warnings.append(
            f'column "{status.name}" has no default: a row inserted without it is no task. '
            f"Run: alter table {name} alter column {column} set default {sql.Literal(queued).as_string(None)};"
        )


def _type_refusal(status: Column, refused: dict[str, str]) -> str:
    words = ", ".join(sorted({f"'{value}'" for value in refused.values()}))
    column = f'status column "{status.name}"'
    if status.labels:
        labels = ", ".join(f"'{label}'" for label in status.labels)
        return f"{column} is the enum {status.type} without {words}; it has {labels}."
    if status.length is not None:
        return f"{column} is {status.type}, too short for {words}."
    return f"{column} is {status.type}, which does not take {words}."


def _fits_type(conn: Connection, column: Column, value: str) -> bool:
    """Return whether a value survives the cast: an enum accepts only its labels, a varchar(n) truncates."""
    if column.length is not None and len(value) > column.length:
        return False
    try:
        with conn.transaction(force_rollback=True):
            conn.execute(sql.SQL("select cast({} as {})").format(sql.Literal(value), type_name(column.type)))
    except (psycopg.DataError, psycopg.IntegrityError):
        return False
    return True


def _check_constraint(
    conn: Connection, check: Check, status: Column, values: Values, problems: list[str], warnings: list[str]
) -> None:
    if status.name not in check.columns:
        return
    unclear = (
        f'constraint "{check.name}" {check.definition} is about "{status.name}" and more: make sure that it accepts '
        f"{', '.join(repr(value) for value in values.by_name.values())}."
    )
    if check.columns != [status.name]:
        warnings.append(unclear)
        return
    try:
        refused = [value for value in values.by_name.values() if not _admits(conn, check, status, value)]
    except psycopg.Error:
        warnings.append(unclear)
        return
    if refused:
        words = ", ".join(f"'{value}'" for value in refused)
        problems.append(
            f'status column "{status.name}" does not take {words}: constraint "{check.name}" {check.definition}. '
            f"{values.remedy}"
        )


def _admits(conn: Connection, check: Check, status: Column, value: str) -> bool:
    """Return whether a CHECK over one column accepts a value, by evaluating it over a row with that value."""
    with conn.transaction(force_rollback=True):
        row = conn.execute(
            sql.SQL("select coalesce(({}), true) from (values (cast({} as {}))) as v({})").format(
                type_name(check.expression), sql.Literal(value), type_name(status.type), sql.Identifier(status.name)
            )
        ).fetchone()
    return bool(row and row[0])
