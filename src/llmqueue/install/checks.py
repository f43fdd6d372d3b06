"""Checks whether a table can be adopted as it is: finds every obstacle, with its remedy, before anything changes."""

from __future__ import annotations

from dataclasses import dataclass, field

from llmqueue.db.mapping import Mapping, quoted
from llmqueue.install.columns import OWN_STATUS, OWN_STATUS_COLUMN, QUEUED, STATUSES, OurColumn, ours
from llmqueue.install.server import act_as
from llmqueue.install.spec import AdoptionSpec, near, parse_name
from llmqueue.install.status_words import Values, check_words
from llmqueue.install.table import ORDINARY, Column, Connection, Table

_KEY_TYPES = {
    "smallint": "smallint",
    "integer": "integer",
    "bigint": "bigint",
    "uuid": "uuid",
    "text": "text",
    "character varying": "text",
}
_NO_TABLE = {
    "v": "is a view: name the table behind it with --table.",
    "m": "is a materialized view: tasks are rows that are updated. Name a table with --table.",
    "f": "is a foreign table: rows elsewhere cannot be locked. Run init in the database where the table lives.",
    "p": "is a partitioned table: it takes no index CONCURRENTLY, and its key is unique only within a partition. "
    "Let the sources insert into a plain table and move finished rows to the partitioned one.",
}


@dataclass(slots=True)
class Findings:
    """The findings: a problem prevents the adoption, a warning is shown."""

    problems: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


def check_relation(table: Table, findings: Findings) -> bool:
    """Check the table as a whole; return False if checking its columns makes no sense."""
    relation = table.relation
    if relation.kind != ORDINARY:
        findings.problems.append(f"it {_NO_TABLE[relation.kind]}")
        return False
    if relation.persistence == "t":
        findings.problems.append("it is a temporary table, which no other session can see. Name a permanent one.")
    if relation.is_partition:
        findings.problems.append("it is a partition, whose columns are its parent's. Name a plain table.")
    if relation.has_children:
        findings.problems.append(
            "other tables inherit from it: its indexes and its key do not reach their rows. "
            "Name a child, or move the rows into one table."
        )
    if not relation.is_owner:
        findings.problems.append(
            f"it belongs to the role {quoted(relation.owner)}, which has to own the objects that init creates, "
            f"and this session's role is {quoted(relation.role)}. {act_as(relation.owner)}"
        )
    if not relation.may_create_in_schema:
        schema = quoted(relation.schema)
        findings.problems.append(
            f"this role may not create indexes in schema {schema}. "
            f"Let its owner run: grant create on schema {schema} to {quoted(relation.role)};"
        )
    if relation.persistence == "u":
        findings.warnings.append(f"{relation.schema}.{relation.name} is unlogged: a crash of the server empties it.")
    return True


def resolve(conn: Connection, table: Table, spec: AdoptionSpec, findings: Findings) -> Mapping | None:
    """Find the columns that the options name and check each; return None if a column is missing."""
    key = _required(table, spec.id_column, "id", findings)
    prompt = _required(table, spec.prompt_column, "prompt", findings)
    answer = _required(table, spec.answer_column, "answer", findings)
    status = _status(table, spec, findings)
    columns = _our_columns(table, spec, findings)
    if key is not None:
        _check_key(table, key, findings)
    if prompt is not None:
        _check_text(prompt, "prompt", findings, is_written=False)
    if answer is not None:
        _check_text(answer, "answer", findings, is_written=True)
        if spec.own_status and status is None and answer.is_not_null:
            findings.problems.append(
                f"column {_name(answer)} is NOT NULL, and without a status column a task is one whose answer is null. "
                "Name a status column with --status-column, or drop the NOT NULL."
            )
    if key is None or prompt is None or answer is None or (status is None and not spec.own_status):
        return None
    _check_distinct([key, prompt, answer, status], columns, findings)
    mapping = _mapping(table, spec, (key, prompt, answer, status), columns)
    if status is not None:
        check_words(conn, table, status, _values(spec, status, mapping), findings.problems, findings.warnings)
    return mapping


def _mapping(
    table: Table,
    spec: AdoptionSpec,
    four: tuple[Column, Column, Column, Column | None],
    columns: dict[str, str],
) -> Mapping:
    key, prompt, answer, status = four
    names = {"id": key.name, "prompt": prompt.name, "answer": answer.name, **columns}
    status_type = OWN_STATUS.type
    if not spec.own_status and status is not None:
        names["status"] = status.name
        status_type = status.base_type
    elif names["status"] in table.columns:
        status_type = table.columns[names["status"]].base_type
    theirs = status if spec.own_status else None
    queued, done = _defaults(spec, theirs)
    return Mapping(
        table_schema=table.relation.schema,
        table_name=table.relation.name,
        columns=names,
        words={status: status if spec.own_status else spec.word(status) for status in STATUSES},
        own_status=spec.own_status,
        owner_status_column=theirs.name if theirs else None,
        queued_value=queued,
        done_value=done,
        key_type=_KEY_TYPES.get(key.base_type, key.base_type),
        prompt_type=prompt.base_type,
        answer_type=answer.base_type,
        status_type=status_type,
        owner_status_type=theirs.base_type if theirs else None,
        prompt_is_json=prompt.base_type in {"json", "jsonb"},
        answer_is_json=answer.base_type in {"json", "jsonb"},
        is_complete=False,
    )


def _defaults(spec: AdoptionSpec, theirs: Column | None) -> tuple[str | None, str | None]:
    """Return the queued and the done value of the owner's status column; false and true for a boolean."""
    if theirs is None:
        return None, None
    if theirs.base_type == "boolean":
        return spec.queued_value or spec.words.get(QUEUED, "false"), spec.done_value or spec.words.get("solved", "true")
    return spec.word(QUEUED), spec.word("solved")


def _values(spec: AdoptionSpec, status: Column, mapping: Mapping) -> Values:
    if spec.own_status:
        given = {"--queued-value": mapping.queued_value or "", "--done-value": mapping.done_value or ""}
        return Values(given, own_status=True)
    return Values(dict(mapping.words), own_status=False)


def _name(column: Column) -> str:
    return f'"{column.name}"'


def _required(table: Table, option: str | None, ours: str, findings: Findings) -> Column | None:
    wanted = parse_name(option if option is not None else ours)
    found = wanted.find(table.columns)
    if found is not None:
        return table.columns[found]
    if ours == "id" and len(table.primary_key) == 1:
        hint = f" Its primary key is --id-column {quoted(table.primary_key[0])}."
    else:
        hint = near(wanted.text, table.columns) or f" It has: {', '.join(table.columns)}."
        hint += "" if option else f" Name it with --{ours}-column COLUMN."
    findings.problems.append(f'it has no column "{wanted.text}".{hint}')
    return None


def _status(table: Table, spec: AdoptionSpec, findings: Findings) -> Column | None:
    if spec.own_status and spec.status_column is None:
        return table.columns.get("status")
    column = _required(table, spec.status_column, "status", findings)
    if column is None and not spec.own_status:
        findings.problems[-1] += " Or give llmqueue a status column of its own with --own-status."
    if column is not None and column.is_generated:
        findings.problems.append(
            f"column {_name(column)} is generated and cannot be written. Keep the status in a column of llmqueue: "
            "--own-status, with another column as --status-column COLUMN or without one."
        )
    return column


def _our_columns(table: Table, spec: AdoptionSpec, findings: Findings) -> dict[str, str]:
    """Return our name -> the owner's column; refuse existing columns that no option names or that have a wrong type."""
    result: dict[str, str] = {}
    unasked: list[str] = []
    for our in ours(spec.own_status):
        default = OWN_STATUS_COLUMN if our is OWN_STATUS else our.name
        wanted = parse_name(spec.columns.get(our.name, default))
        found = wanted.find(table.columns)
        result[our.name] = found or wanted.text
        if found is None:
            if our.name in spec.columns and (hint := near(wanted.text, table.columns)):
                findings.warnings.append(f'column "{wanted.text}" does not exist and will be added.{hint}')
        elif our.name not in spec.columns:
            unasked.append(our.name)
            findings.problems.append(_unasked(our, found))
        else:
            _check_ours(our, table.columns[found], findings)
    if len(unasked) > 1:
        options = " ".join(f"--column {name}={result[name]}" for name in unasked)
        findings.problems.append(f"to use all existing columns that have our names: {options}")
    return result


def _unasked(our: OurColumn, found: str) -> str:
    other = our.name if found != our.name else f"llmqueue_{our.name}"
    return (
        f'column "{found}" exists already. Use it with --column {our.name}={found}, '
        f"or give ours another name with --column {our.name}={other}."
    )


def _check_ours(our: OurColumn, column: Column, findings: Findings) -> None:
    fits = column.kind in {"b", "e"} if our.accepts is None else column.base_type in our.accepts
    remedy = f"Give ours another name with --column {our.name}=llmqueue_{our.name}."
    if not fits or (our.accepts is None and column.category == "A"):
        findings.problems.append(
            f"column {_name(column)} is {column.type}, and {our.name} needs {our.accepted}. {remedy}"
        )
    if column.is_generated:
        findings.problems.append(f"column {_name(column)} is generated and cannot be written. {remedy}")
    if column.is_not_null and our.is_cleared:
        findings.problems.append(
            f"column {_name(column)} is NOT NULL, and {our.name} is null most of the time. {remedy}"
        )


def _check_key(table: Table, key: Column, findings: Findings) -> None:
    if key.base_type not in _KEY_TYPES:
        findings.problems.append(
            f"its key {_name(key)} is {key.type}: a key is bigint, integer, smallint, uuid, text or varchar. "
            "Name another unique column with --id-column."
        )
    if key.name in table.unique_columns:
        return
    others = [name for name in table.unique_columns if table.columns[name].base_type in _KEY_TYPES]
    if others:
        remedy = f"Use --id-column {quoted(min(others))}, which is."
    else:
        name, column = f"{quoted(table.relation.schema)}.{quoted(table.relation.name)}", quoted(key.name)
        remedy = (
            f"Make it so: create unique index concurrently on {name} ({column}); "
            f"alter table {name} alter column {column} set not null;"
        )
    if len(table.primary_key) > 1:
        parts = ", ".join(table.primary_key)
        findings.problems.append(
            f"its key is composite ({parts}), and column {_name(key)} alone is not unique and NOT NULL. {remedy}"
        )
    else:
        findings.problems.append(f"its key {_name(key)} is not unique and NOT NULL. {remedy}")


def _check_text(column: Column, our: str, findings: Findings, *, is_written: bool) -> None:
    article = "an" if our == "answer" else "a"
    if column.category != "S" and column.base_type not in {"json", "jsonb"}:
        findings.problems.append(
            f"column {_name(column)} is {column.type}: {article} {our} is text, varchar, json or jsonb. "
            f"Name another with --{our}-column."
        )
    if is_written and column.is_generated:
        findings.problems.append(
            f"column {_name(column)} is generated and cannot be written. Name another with --{our}-column."
        )


def _check_distinct(four: list[Column | None], columns: dict[str, str], findings: Findings) -> None:
    taken: dict[str, str] = {}
    pairs = [*zip(("id", "prompt", "answer", "status"), (c.name if c else None for c in four), strict=True)]
    own = [("status (ours)" if name == "status" else name, column) for name, column in columns.items()]
    for name, column in [*pairs, *own]:
        if column is not None and taken.setdefault(column, name) != name:
            findings.problems.append(f'column "{column}" cannot be both {taken[column]} and {name}.')
