"""Checks for `init` on a database with a complete or interrupted adoption: it accepts only the same table."""

from __future__ import annotations

from llmqueue.db.mapping import Mapping, quoted
from llmqueue.errors import AdoptionRefused
from llmqueue.install import mapping_sql
from llmqueue.install.checks import Findings, check_relation
from llmqueue.install.columns import MAPPED_FOUR
from llmqueue.install.spec import AdoptionSpec, parse_name, parse_table
from llmqueue.install.table import Connection, Table, read_indexes


def check_same(mapping: Mapping, spec: AdoptionSpec) -> None:
    """Refuse options that differ from the mapping; options that are not given do not count.

    Raises:
        AdoptionRefused: the message has each difference and the remedy.
    """
    differences = [*_table_differs(mapping, spec), *_columns_differ(mapping, spec), *_status_differs(mapping, spec)]
    if not differences:
        return
    state = "has adopted" if mapping.is_complete else "has begun to adopt"
    again = "" if mapping.is_complete else " `llmqueue init` without these options continues where it stopped."
    msg = (
        f"llmqueue {state} {mapping.label} in this database, and these options differ: {'; '.join(differences)}."
        f"{again} A database has one tasks table. To start again, which deletes limits and the attempt log but keeps "
        "the tasks as they are: drop schema llmqueue, llmqueue_internal cascade;"
    )
    raise AdoptionRefused(msg)


def check_still_there(mapping: Mapping, table: Table | None, findings: Findings) -> None:
    """Check that the adopted table and its columns still exist."""
    if table is None:
        findings.problems.append(
            "the adopted table was dropped or renamed. Restore it, or after a rename run: update llmqueue.mapping set "
            "table_schema = 'SCHEMA', table_name = 'TABLE'; then run init again."
        )
        return
    if not check_relation(table, findings):
        return
    theirs = {name: mapping.column(name) for name in MAPPED_FOUR if name != "status" or not mapping.own_status}
    if mapping.owner_status_column is not None:
        theirs["status"] = mapping.owner_status_column
    for name, column in theirs.items():
        if column not in table.columns:
            findings.problems.append(
                f'column "{column}", the {name} of a task, was dropped or renamed. After a rename run: '
                f'alter table {mapping.label} rename column … to "{column}";'
            )


def check_index_names(conn: Connection, mapping: Mapping, table: Table | None, findings: Findings) -> None:
    """Find indexes with our names on another table, which a dropped adoption has left."""
    oid = table.relation.oid if table else None
    for index in read_indexes(conn, mapping.table_schema, mapping_sql.all_index_names()).values():
        if index.table_oid != oid:
            name = f"{quoted(mapping.table_schema)}.{index.name}"
            findings.problems.append(
                f"the index {name} belongs to another table. If an earlier adoption has left it, run: "
                f"drop index {name};"
            )


def _table_differs(mapping: Mapping, spec: AdoptionSpec) -> list[str]:
    if spec.table is None:
        return []
    schema, name = parse_table(spec.table)
    same_schema = schema is None or schema.find([mapping.table_schema])
    return [] if same_schema and name.find([mapping.table_name]) else [f"--table {spec.table}"]


def _columns_differ(mapping: Mapping, spec: AdoptionSpec) -> list[str]:
    status = mapping.owner_status_column if mapping.own_status else mapping.column("status")
    four = [
        ("--id-column", spec.id_column, mapping.column("id")),
        ("--prompt-column", spec.prompt_column, mapping.column("prompt")),
        ("--answer-column", spec.answer_column, mapping.column("answer")),
        ("--status-column", spec.status_column, status),
    ]
    pairs = [(f"--column {name}", column, mapping.columns.get(name)) for name, column in spec.columns.items()]
    return [
        f"{option}{'=' if option.startswith('--column') else ' '}{given} (now {known})"
        for option, given, known in [*four, *pairs]
        if given is not None and (known is None or parse_name(given).find([known]) is None)
    ]


def _status_differs(mapping: Mapping, spec: AdoptionSpec) -> list[str]:
    differences = []
    if spec.own_status and not mapping.own_status:
        differences.append("--own-status")
    queued, done = mapping.queued_value, mapping.done_value
    if not mapping.own_status:
        queued, done = mapping.words["unsolved"], mapping.words["solved"]
    for option, given, known in [
        ("--queued-value", spec.queued_value, queued),
        ("--done-value", spec.done_value, done),
    ]:
        if given is not None and given != known:
            differences.append(f"{option} {given} (now {known})")
    for status, given in spec.words.items():
        known = {"unsolved": queued, "solved": done}.get(status, mapping.words[status])
        if given != known:
            differences.append(f"--word {status}={given} (now {known})")
    return differences
