"""Adopts the tasks table: inspects the database and derives the remaining steps from its state.

No other state is kept between two steps. So an interrupted `init` continues where it stopped, and an `init` that finds
no remaining step changes nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import psycopg

from llmqueue.db.connect import classify, connect
from llmqueue.db.mapping import Mapping, find_mapping, quoted
from llmqueue.errors import AdoptionRefused, Failure
from llmqueue.install import advice, cluster
from llmqueue.install.checks import Findings, check_relation, resolve
from llmqueue.install.default_table import default_mapping
from llmqueue.install.indexes import Progress, build
from llmqueue.install.installed import check_index_names, check_same, check_still_there
from llmqueue.install.locks import Report, hold_turn, run_briefly
from llmqueue.install.migrate import read_applied
from llmqueue.install.remaining import remaining
from llmqueue.install.server import check_server
from llmqueue.install.spec import DEFAULT_SCHEMA, DEFAULT_TABLE, AdoptionSpec, near, parse_table
from llmqueue.install.steps import SESSION, Plan, Step
from llmqueue.install.table import Connection, Table, read_table, schema_names, table_names

__all__ = ["AdoptionSpec", "Plan", "install", "plan"]

_MOST_DEADLOCKS = 5


@dataclass(frozen=True, slots=True)
class Adoption:
    """The table that is or will be adopted; `table` is None if `init` has to create it."""

    mapping: Mapping
    table: Table | None
    warnings: list[str]


def plan(dsn: str, spec: AdoptionSpec) -> Plan:
    """Return the plan of `install`, and change nothing.

    Raises:
        AdoptionRefused: the table cannot be adopted; the message has every reason and its remedy.
        SchemaTooNew: a newer llmqueue has upgraded the schema.
    """
    with connect(dsn, application_name="llmqueue init --dry-run") as conn:
        return _plan(conn, spec, _open(conn))


def install(
    dsn: str,
    spec: AdoptionSpec,
    *,
    report: Report = lambda _line: None,
    progress: Progress | None = None,
    after_step: Callable[[Step], None] = lambda _step: None,
) -> None:
    """Install or upgrade the schema, and create the tasks table or adopt the existing one.

    It can be interrupted anywhere and run again. `after_step` is called after the commit of each step; tests interrupt
    there.

    Raises:
        AdoptionRefused: the table cannot be adopted, and nothing was changed; or a lock was not free in time.
        SchemaTooNew: a newer llmqueue has upgraded the schema.
        Failure: the server refused a statement.
    """
    try:
        with connect(dsn, application_name="llmqueue init") as conn:
            search_path = _open(conn)
            _plan(conn, spec, search_path)  # refuses at once, without waiting for another init
            hold_turn(conn, report)
            _install(conn, spec, search_path, report, progress, after_step)
    except psycopg.OperationalError as error:
        raise classify(error, dsn) from error


def _install(
    conn: Connection,
    spec: AdoptionSpec,
    search_path: list[str],
    report: Report,
    progress: Progress | None,
    after_step: Callable[[Step], None],
) -> None:
    left = _plan(conn, spec, search_path)
    if not left.steps:
        report(f"nothing to change: {left.table} is adopted and the schema is up to date")
        return
    for warning in left.warnings:
        report(f"warning: {warning}")
    done, last, deadlocks = 0, None, 0
    while left.steps:
        step = left.steps[0]
        if step == last:
            msg = f"{step.title}: done, but it is needed again. Something reverts it; look for an event trigger."
            raise Failure(msg)
        report(f"[{done + 1}/{done + len(left.steps)}] {step.title}")
        try:
            _run(conn, step, left.table, spec.lock_wait_s, report, progress)
        except psycopg.errors.DeadlockDetected:
            # CREATE INDEX CONCURRENTLY met another session's ALTER TABLE. It leaves an invalid index, dropped next.
            deadlocks += 1
            if deadlocks > _MOST_DEADLOCKS:
                raise
        else:
            done, last = done + 1, step
            after_step(step)
        left = _plan(conn, spec, search_path)
    report(f"done: {left.table} is adopted")


def _run(
    conn: Connection, step: Step, table: str, lock_wait_s: float, report: Report, progress: Progress | None
) -> None:
    if step.is_transaction:
        run_briefly(conn, step, table=table, lock_wait_s=lock_wait_s, report=report)
    else:
        build(conn, step, report=report, progress=progress)


def _open(conn: Connection) -> list[str]:
    """Prepare the session; return the schemas of its search path, in which a table without a schema is looked up."""
    row = conn.execute("select current_schemas(false)::text[]").fetchone()
    for statement in SESSION:
        conn.execute(statement.encode())
    return [str(name) for name in row[0]] if row and isinstance(row[0], list) else []


def _plan(conn: Connection, spec: AdoptionSpec, search_path: list[str]) -> Plan:
    # One snapshot for all reads, because another init may commit between two of these queries.
    with conn.transaction():
        conn.execute("set transaction isolation level repeatable read")
        found = _find(conn, spec, search_path)
        steps = remaining(conn, found.mapping, found.table, search_path=search_path, with_roles=spec.with_roles)
    return Plan(found.mapping.label, tuple(steps), tuple(found.warnings))


def _find(conn: Connection, spec: AdoptionSpec, search_path: list[str]) -> Adoption:
    """Return the table to adopt, from an earlier init or from the options.

    Raises:
        AdoptionRefused: it cannot be adopted; the message lists every reason.
    """
    findings = Findings(problems=check_server(conn))
    mapping = find_mapping(conn)
    if mapping is not None:
        check_same(mapping, spec)
        table = read_table(conn, mapping.table_schema, mapping.table_name)
        check_still_there(mapping, table, findings)
        label = mapping.label
    else:
        table = _locate(conn, spec, search_path, findings)
        label = (
            f"{quoted(table.relation.schema)}.{quoted(table.relation.name)}"
            if table
            else spec.table or f"{DEFAULT_SCHEMA}.{DEFAULT_TABLE}"
        )
        if table is not None and check_relation(table, findings):
            mapping = resolve(conn, table, spec, findings)
            findings.warnings += advice.warnings(conn, table)
        elif table is None and not spec.names_a_table:
            mapping = default_mapping()
            label = mapping.label
    if mapping is not None and not findings.problems:
        check_index_names(conn, mapping, table, findings)
        findings.problems += _check_roles(conn, mapping, search_path, with_roles=spec.with_roles)
    if findings.problems or mapping is None:
        raise AdoptionRefused(_refusal(label, findings.problems))
    return Adoption(mapping, table, findings.warnings)


def _check_roles(conn: Connection, mapping: Mapping, search_path: list[str], *, with_roles: bool) -> list[str]:
    if not with_roles and "roles" not in read_applied(conn):
        return []
    found = cluster.read_cluster(conn, mapping, cluster.owners_path(conn, mapping, search_path))
    return cluster.check(found, mapping, with_roles=with_roles)


def _refusal(label: str, problems: list[str]) -> str:
    if len(problems) == 1:
        return f"cannot adopt {label}: {problems[0]}"
    return "\n".join([f"cannot adopt {label}:", *(f"  - {problem}" for problem in problems)])


def _locate(conn: Connection, spec: AdoptionSpec, search_path: list[str], findings: Findings) -> Table | None:
    """Return the table that the options name; None, with a problem noted, if it does not exist."""
    schema, name = parse_table(spec.table or f"{DEFAULT_SCHEMA}.{DEFAULT_TABLE}")
    schemas = schema_names(conn)
    candidates = [schema.find(schemas)] if schema else [*search_path, DEFAULT_SCHEMA]
    for candidate in candidates:
        if candidate is None:
            findings.problems.append(
                f'there is no schema "{schema.text if schema else ""}".{near(schema.text, schemas) if schema else ""}'
            )
            return None
        found = name.find(table_names(conn, candidate))
        if found is not None:
            return read_table(conn, candidate, found)
    if spec.names_a_table:
        where = candidates[0] if candidates else DEFAULT_SCHEMA
        there = table_names(conn, where or DEFAULT_SCHEMA)
        hint = (
            near(name.text, there)
            or f" Name it with --table SCHEMA.TABLE; without options init creates {DEFAULT_SCHEMA}.{DEFAULT_TABLE}."
        )
        findings.problems.append(f'there is no table "{name.text}" in schema {quoted(str(where))}.{hint}')
    return None
