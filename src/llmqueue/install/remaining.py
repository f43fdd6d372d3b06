"""The remaining steps: the difference between the intended and the present state of the database."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import PurePosixPath

from psycopg import sql
from psycopg.types.json import Jsonb

from llmqueue.db.mapping import Mapping, find_mapping
from llmqueue.db.resources import function_files, sql_dir
from llmqueue.install import cluster, mapping_sql, rights
from llmqueue.install.columns import ours
from llmqueue.install.default_table import column_definition, create_table
from llmqueue.install.indexes import OWN, IndexSteps, index_steps, own_index_steps
from llmqueue.install.migrate import Applied, migration_steps, parts, read_applied, read_versions, rights_parts, upgrade
from llmqueue.install.steps import Step
from llmqueue.install.table import Connection, Table, read_indexes


def remaining(
    conn: Connection, mapping: Mapping, table: Table | None, *, search_path: Sequence[str], with_roles: bool
) -> list[Step]:
    """Return the steps in the order in which they run; none if there is nothing to change.

    Raises:
        SchemaTooNew: a newer llmqueue has upgraded the schema.
    """
    applied = read_applied(conn)
    steps = [] if find_mapping(conn) else [_schema_step(mapping, table)]
    steps += _domain_steps(conn, mapping)
    migrations = migration_steps(read_versions(conn))
    if migrations and "functions" in applied:
        steps += _column_steps(mapping, table)
        rights_steps = _rights_steps(conn, mapping, table, applied, migrations, search_path, with_roles=with_roles)
        steps.append(upgrade(mapping, migrations, rights_steps))
    else:
        steps += [*migrations, *_column_steps(mapping, table), *_part_steps(mapping, applied)]
        steps += _rights_steps(conn, mapping, table, applied, steps, search_path, with_roles=with_roles)
    steps += _index_steps(conn, mapping, table, applied)
    own_indexes = _own_index_steps(conn) if "functions" in applied else IndexSteps([], [])
    steps = [*own_indexes.builds, *steps, *own_indexes.swaps]  # before functions that need them
    if table is None or not table.has_trigger:
        steps.append(
            Step("trigger", f"wake idle workers at inserts into {mapping.label}", (mapping_sql.trigger(mapping),))
        )
    if not mapping.is_complete:
        finished = "update llmqueue.mapping set is_complete = true"
        steps.append(Step("complete", "record that the adoption is complete", (finished,)))
    return steps


def _schema_step(mapping: Mapping, table: Table | None) -> Step:
    base = (sql_dir() / "mapping" / "mapping.sql").read_text(encoding="utf-8")
    values = {field.name: getattr(mapping, field.name) for field in fields(mapping)}
    insert = mapping_sql.text(
        sql.SQL("insert into llmqueue.mapping ({}) values ({})").format(
            sql.SQL(", ").join(sql.Identifier(name) for name in values),
            sql.SQL(", ").join(sql.Literal(Jsonb(v) if isinstance(v, dict) else v) for v in values.values()),
        )
    )
    if table is not None:
        return Step("schema", f"create the schema llmqueue and note how {mapping.label} maps to it", (base, insert))
    title = f"create the schema llmqueue and the table {mapping.label}"
    return Step("schema", title, (base, insert, create_table(mapping)))


def _domain_steps(conn: Connection, mapping: Mapping) -> list[Step]:
    row = conn.execute("select to_regtype('llmqueue.task_id') is not null").fetchone()
    if row and row[0]:
        return []
    return [Step("domain", f"name the key's type, {mapping.key_type}", (mapping_sql.task_id_domain(mapping),))]


def _column_steps(mapping: Mapping, table: Table | None) -> list[Step]:
    if table is None:
        return []
    missing = [our for our in ours(mapping.own_status) if mapping.column(our.name) not in table.columns]
    if not missing:
        return []
    # One statement for all columns takes one lock, for as long as the catalog is written. No default is volatile, so no
    # row is rewritten.
    actions: list[sql.Composable] = []
    defaults: list[sql.Composable] = []
    for our in missing:
        name = mapping.column(our.name)
        if table.row_type_users and our.default:
            # "cannot alter table because column … uses its row type": the column can only be added without a default.
            actions.append(sql.SQL("add column {}").format(column_definition(replace(our, default=None), name)))
            set_default = sql.SQL("alter column {} set default {}")
            defaults.append(set_default.format(sql.Identifier(name), mapping_sql.type_name(our.default)))
        else:
            actions.append(sql.SQL("add column {}").format(column_definition(our, name)))
    statement = sql.SQL("alter table {}\n    {}").format(mapping.table, sql.SQL(",\n    ").join(actions + defaults))
    return [
        Step(
            "columns",
            f"add {len(missing)} columns to {mapping.label}, without a rewrite",
            (mapping_sql.text(statement),),
        )
    ]


def _index_steps(conn: Connection, mapping: Mapping, table: Table | None, applied: dict[str, Applied]) -> list[Step]:
    there = read_indexes(conn, mapping.table_schema, mapping_sql.all_index_names())
    oid = table.relation.oid if table else None
    left = index_steps(mapping, {name: index for name, index in there.items() if index.table_oid == oid}, applied)
    return [*left.builds, *left.swaps]


def _own_index_steps(conn: Connection) -> IndexSteps:
    query = "select 1 from pg_attribute where attrelid = to_regclass('llmqueue.attempt') and attname = 'is_hot'"
    if conn.execute(query).fetchone() is None:
        return IndexSteps([], [])  # there is no log yet, or it lacks the column: then its migrations come first
    return own_index_steps(read_indexes(conn, "llmqueue", OWN))


def _part_steps(mapping: Mapping, applied: dict[str, Applied]) -> list[Step]:
    steps: list[Step] = []
    for part in parts(mapping):
        known = applied.get(part.name)
        is_current = known is not None and known.source_hash == part.source_hash and known.is_intact
        # Recreating the mapping's view drops our other views, so the parts after it are applied too.
        if not is_current or (steps and steps[0].key == "mapping"):
            steps.append(part.step())
    return steps


def _rights_steps(
    conn: Connection,
    mapping: Mapping,
    table: Table | None,
    applied: dict[str, Applied],
    before: list[Step],
    search_path: Sequence[str],
    *,
    with_roles: bool,
) -> list[Step]:
    """Return the rights steps. Roles get rights in a database once an `init --roles` has run there."""
    path = cluster.owners_path(conn, mapping, search_path)
    found = cluster.read_cluster(conn, mapping, path)
    roles = set(rights.ROLES) if with_roles else found.existing if "roles" in applied else frozenset()
    steps = cluster.create_step(found) if with_roles else []
    place = rights.Place(mapping, table, not found.is_schema_public, found.sequences)
    grants = rights.for_roles(place, roles)
    # `create or replace` keeps rights; a new or recreated object has the default rights of PUBLIC.
    made_anew = any(step.key != "functions" for step in before) or (bool(before) and _has_new_functions(conn))
    for part in rights_parts(rights.for_everybody(path), grants):
        known = applied.get(part.name)
        is_current = known is not None and known.source_hash == part.source_hash and known.is_intact
        if not is_current or made_anew:
            steps.append(part.step())
    return steps


def _has_new_functions(conn: Connection) -> bool:
    query = """
        select proname::text from pg_proc
         where pronamespace in (to_regnamespace('llmqueue'), to_regnamespace('llmqueue_internal'))
    """
    there = {str(name) for (name,) in conn.execute(query)}
    return any(PurePosixPath(file.name).stem not in there for file in function_files())
