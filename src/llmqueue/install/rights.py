"""Rights: none for PUBLIC, and the necessary minimum for each of four roles (docs/decisions.md, 38 and 39).

Roles belong to the cluster, rights to one database. `init --roles` creates the missing roles and grants their rights in
this database. From then on every init here grants them again, because a dropped and recreated object has lost them.
tests/sql/test_roles.py lists the rights of each role on every object, and fails for a new object until it is listed.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from psycopg import sql

from llmqueue.db.mapping import Mapping
from llmqueue.install import mapping_sql
from llmqueue.install.table import Table

_API: Final = "llmqueue"
_INTERNAL: Final = "llmqueue_internal"

WORKER: Final = "llmqueue_worker"
PRODUCER: Final = "llmqueue_producer"
OPERATOR: Final = "llmqueue_operator"
READER: Final = "llmqueue_reader"

ROLES: Final = {
    WORKER: "claims and settles tasks of llmqueue through functions, and reads no table of it",
    PRODUCER: "inserts tasks of llmqueue",
    OPERATOR: "changes limits of llmqueue, restarts, cancels and purges tasks; sees no prompt and no answer",
    READER: "reads the views of llmqueue; sees no prompt and no answer",
}

# Columns of the tasks table that only llmqueue writes.
MACHINE_COLUMNS: Final = (
    "answer", "attempts", "error", "input_tokens", "output_tokens", "started_at", "finished_at", "fence", "restarts",
)  # fmt: skip
# PostgreSQL checks EXECUTE of the functions of an index expression for the role that inserts, so PUBLIC keeps this one.
FOR_EVERYBODY: Final = ("user_key",)


@dataclass(frozen=True, slots=True)
class Right:
    """Privileges on a table or view of the schema, or on some of its columns."""

    privileges: tuple[str, ...]
    relation: str
    columns: tuple[str, ...] = ()


_START: Final = (Right(("select",), "mapping"), Right(("select",), "schema_version"))
_READ: Final = (
    *(
        Right(("select",), name)
        for name in ("backlog", "dead_letters", "epoch_status", "eta", "model_status", "throughput", "worker_status")
    ),
    *(Right(("select",), name) for name in ("model_config", "pool_member", "limiter", "quarantine")),
    # for `audit`: all columns except late answers and the texts of errors
    Right(
        ("select",),
        "attempt",
        (
            "fence", "task_id", "model", "worker", "attempt_no", "granted_at", "cell", "rpm", "sent_at", "ended_at",
            "outcome", "error_class", "latency_s", "input_tokens", "output_tokens", "lane", "is_hot", "is_probe",
            "ceiling_rpm", "tpm", "output_tpm", "token_mode", "bytes_estimate", "char_class_estimate", "input_charge",
            "output_charge", "tokens", "output_tokens_charged", "top_up_cell", "top_up_tokens", "tokens_final",
            "output_tokens_final",
        ),
    ),
)  # fmt: skip
_OPERATE: Final = (
    Right(("insert", "update"), "model_config"),
    Right(("insert", "update", "delete"), "pool_member"),
    Right(("select",), "model_state"),
    Right(("delete",), "quarantine"),
    Right(
        ("select",),
        "task",
        (
            "id", "status", "run_at", "finished_at", "fence", "lane", "due_at",
            "is_ready", "is_delayed", "is_running", "is_failed", "is_ended",
        ),
    ),
    Right(("delete",), "task"),
)  # fmt: skip
RIGHTS: Final = {
    WORKER: _START,
    PRODUCER: (*_START, Right(("select",), "task", ("id",))),
    OPERATOR: (*_START, *_READ, *_OPERATE),
    READER: (*_START, *_READ),
}

# called by every program that finds a newer schema than its own
_START_FUNCTIONS: Final = ("oldest_program",)
_READ_FUNCTIONS: Final = (*_START_FUNCTIONS, "desired_inflight", "why")
# The functions of schema llmqueue that each role may call. They run with the owner's rights and take no clock.
FUNCTIONS: Final = {
    WORKER: (
        *_START_FUNCTIONS,
        "claim", "clock_stepped", "drain_state", "heartbeat", "leave", "maintain", "prune_attempts", "register",
        "release_unknown_claims", "report_backend", "restore_attempts", "settle", "top_up",
    ),
    PRODUCER: _START_FUNCTIONS,
    OPERATOR: (*_READ_FUNCTIONS, "cancel", "restart", "end_cooldown"),
    READER: _READ_FUNCTIONS,
}  # fmt: skip
# Functions of schema llmqueue_internal that the views call: PostgreSQL checks EXECUTE for the role that reads the view.
# No role has USAGE of that schema, so none can name these functions in its own statements.
_VIEW_FUNCTIONS: Final = (
    "clock", "count_60s", "count_backlog", "count_ready", "count_today", "day_start", "effective_concurrency",
    "effective_rpm", "is_enabled",
)  # fmt: skip
INTERNAL_FUNCTIONS: Final = {WORKER: (), PRODUCER: (), OPERATOR: _VIEW_FUNCTIONS, READER: _VIEW_FUNCTIONS}

# The rights of PUBLIC and of the four roles on all objects of the schema. They are hashed, so that `init` finds losses.
_ACLS: Final = """
    select 'n' as kind, n.nspname::text as name, n.nspacl as acl from pg_namespace n
     where n.nspname in ('llmqueue', 'llmqueue_internal')
    union all
    select 'f', p.proname, coalesce(p.proacl, acldefault('f', p.proowner)) from pg_proc p
     where p.pronamespace in (to_regnamespace('llmqueue'), to_regnamespace('llmqueue_internal'))
    union all
    select 'r', c.relname, c.relacl from pg_class c where c.relnamespace = to_regnamespace('llmqueue')
    union all
    select 't', c.relname, c.relacl from llmqueue.mapping m
      join pg_namespace n on n.nspname = m.table_schema
      join pg_class c on c.relnamespace = n.oid and c.relname = m.table_name
    union all
    select 'a', c.relname || '.' || a.attname, a.attacl from pg_class c join pg_attribute a on a.attrelid = c.oid
     where c.relnamespace = to_regnamespace('llmqueue') and a.attacl is not null
    union all
    select 't', c.relname || '.' || a.attname, a.attacl from llmqueue.mapping m
      join pg_namespace n on n.nspname = m.table_schema
      join pg_class c on c.relnamespace = n.oid and c.relname = m.table_name
      join pg_attribute a on a.attrelid = c.oid and a.attacl is not null
"""
PUBLIC_HASH: Final = f"""
select md5(coalesce(string_agg(concat_ws(' ', o.kind, o.name, x.privilege_type), ','
                               order by o.kind, o.name collate "C", x.privilege_type), ''))
  from (select o.kind, o.name, o.acl from ({_ACLS}) o where o.kind <> 't' and o.acl is not null) o
 cross join lateral aclexplode(o.acl) x where x.grantee = 0
"""  # noqa: S608 - constants
ROLES_HASH: Final = f"""
select md5(coalesce(string_agg(concat_ws(' ', r.rolname, o.kind, o.name, x.privilege_type), ','
                               order by r.rolname, o.kind, o.name collate "C", x.privilege_type), ''))
  from (select o.kind, o.name, o.acl from ({_ACLS}) o where o.acl is not null) o
 cross join lateral aclexplode(o.acl) x
  join pg_roles r on r.oid = x.grantee
 where r.rolname in ('{WORKER}', '{PRODUCER}', '{OPERATOR}', '{READER}')
"""  # noqa: S608 - constants


def for_everybody(owners_path: Iterable[str]) -> tuple[str, ...]:
    """Return the statements that revoke all rights from PUBLIC, which by default may execute every function."""
    path = sql.SQL("update llmqueue.mapping set search_path = {}::text[]").format(sql.Literal(list(owners_path)))
    return (
        "revoke all on schema llmqueue, llmqueue_internal from public",
        "revoke all on all tables in schema llmqueue from public",
        "revoke all on all sequences in schema llmqueue from public",
        "revoke all on all functions in schema llmqueue, llmqueue_internal from public",
        *(mapping_sql.text(_grant_function(_INTERNAL, name, sql.SQL("public"))) for name in FOR_EVERYBODY),
        mapping_sql.text(path),
    )


@dataclass(frozen=True, slots=True)
class Place:
    """The tasks table, and the other objects on which a producer needs rights."""

    mapping: Mapping
    table: Table | None  # None: `init` will create it
    needs_usage: bool  # PUBLIC has no USAGE of its schema
    sequences: tuple[tuple[str, str], ...]  # schema and name of the sequences in its defaults


def for_roles(place: Place, roles: Iterable[str]) -> tuple[str, ...]:
    """Return the statements that grant each role its rights in this database and revoke all others."""
    wanted = set(roles)
    return tuple(
        mapping_sql.text(statement)
        for name in ROLES
        if name in wanted
        for statement in (*_reset(name, place.mapping), *_rights_of(name), *_table_rights(name, place))
    )


def _reset(role: str, mapping: Mapping) -> list[sql.Composable]:
    to = sql.Identifier(role)
    return [
        *(
            sql.SQL("revoke all on all {} in schema llmqueue, llmqueue_internal from {}").format(sql.SQL(kind), to)
            for kind in ("tables", "sequences", "functions")
        ),
        sql.SQL("revoke all on schema llmqueue_internal from {}").format(to),
        sql.SQL("revoke all on {} from {}").format(mapping.table, to),
        sql.SQL("grant usage on schema llmqueue to {}").format(to),
    ]


def _rights_of(role: str) -> list[sql.Composable]:
    to = sql.Identifier(role)
    tables = [
        sql.SQL("grant {} on {} to {}").format(
            _privileges(right.privileges, right.columns), sql.Identifier("llmqueue", right.relation), to
        )
        for right in RIGHTS[role]
    ]
    return [
        *tables,
        *(_grant_function(_API, name, to) for name in FUNCTIONS[role]),
        *(_grant_function(_INTERNAL, name, to) for name in INTERNAL_FUNCTIONS[role]),
    ]


def _grant_function(schema: str, name: str, to: sql.Composable) -> sql.Composable:
    # Without arguments: none of our functions has two signatures (tests/guards/test_functions.py).
    return sql.SQL("grant execute on function {} to {}").format(sql.Identifier(schema, name), to)


def _privileges(privileges: Iterable[str], columns: Iterable[str]) -> sql.Composable:
    of = sql.SQL(", ").join(map(sql.Identifier, columns))
    names = [sql.SQL("{} ({})").format(sql.SQL(name), of) if columns else sql.SQL(name) for name in privileges]
    return sql.SQL(", ").join(names)


def _table_rights(role: str, place: Place) -> list[sql.Composable]:
    """Return the grants on the user's table; only producers have any."""
    mapping, to = place.mapping, sql.Identifier(role)
    rights: list[tuple[str, list[str]]] = []
    if role == PRODUCER:
        rights = [("insert", insertable(mapping, place.table)), ("select", [mapping.column("id")])]
    grants: list[sql.Composable] = [
        sql.SQL("grant {} on {} to {}").format(_privileges([privilege], columns), mapping.table, to)
        for privilege, columns in rights
    ]
    if rights and place.needs_usage:
        grants.append(sql.SQL("grant usage on schema {} to {}").format(sql.Identifier(mapping.table_schema), to))
    if role == PRODUCER:
        grants += [
            sql.SQL("grant usage on sequence {} to {}").format(sql.Identifier(*name), to) for name in place.sequences
        ]
    return grants


def insertable(mapping: Mapping, table: Table | None) -> list[str]:
    """Return the columns that a producer may fill: all except llmqueue's, unless such a column is mandatory."""
    machine = {mapping.column(name) for name in MACHINE_COLUMNS}
    if mapping.own_status:
        machine.add(mapping.column("status"))
    columns = {} if table is None else table.columns
    must = {column.name for column in columns.values() if column.is_not_null and column.default is None}
    generated = {column.name for column in columns.values() if column.is_generated}
    named = {*mapping.columns.values(), *columns} - generated
    return sorted(name for name in named if name not in machine or name in must)
