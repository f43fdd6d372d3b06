"""The roles of the cluster, and the obstacles to `init --roles`."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from psycopg import sql

from llmqueue.db.mapping import Mapping, quoted
from llmqueue.install import mapping_sql
from llmqueue.install.rights import ROLES
from llmqueue.install.steps import Step
from llmqueue.install.table import Connection


@dataclass(frozen=True, slots=True)
class Cluster:
    """What the catalog says about the roles, and about the schemas in the search path of the owner's triggers."""

    existing: frozenset[str]
    powerful: tuple[str, ...]  # those of our roles with attributes that no REVOKE can limit
    may_create_roles: bool
    role: str  # the role of this session
    open_schemas: tuple[str, ...]  # schemas of the search path in which everybody may create objects
    trigger_for_all: bool  # everybody may create triggers on the tasks table
    is_schema_public: bool  # everybody has USAGE of the schema of the tasks table
    sequences: tuple[tuple[str, str], ...]  # schema and name of the sequences in the tasks table's defaults


_CLUSTER: Final = """
    select array(select rolname::text from pg_roles where rolname = any (%(roles)s)),
           array(select rolname::text from pg_roles where rolname = any (%(roles)s)
                  and (rolsuper or rolcreaterole or rolcreatedb or rolbypassrls or rolreplication) order by 1),
           (select rolsuper or rolcreaterole from pg_roles where rolname = current_user), current_user::text,
           array(select n.nspname::text from unnest(%(path)s::text[]) with ordinality p(name, no)
                   join pg_namespace n on n.nspname = p.name
                  where exists (select from aclexplode(n.nspacl) x where x.grantee = 0 and x.privilege_type = 'CREATE')
                  order by p.no),
           exists (select from pg_class c join pg_namespace n on n.oid = c.relnamespace
                    cross join lateral aclexplode(c.relacl) x
                    where n.nspname = %(schema)s and c.relname = %(table)s and x.grantee = 0
                      and x.privilege_type = 'TRIGGER'),
           exists (select from pg_namespace n cross join lateral aclexplode(n.nspacl) x
                    where n.nspname = %(schema)s and x.grantee = 0 and x.privilege_type = 'USAGE')
"""
_SEQUENCES: Final = """
    select distinct sn.nspname::text, s.relname::text
      from pg_class c
      join pg_namespace n on n.oid = c.relnamespace
      join pg_attrdef d on d.adrelid = c.oid
      join pg_depend p on p.classid = 'pg_attrdef'::regclass and p.objid = d.oid and p.refclassid = 'pg_class'::regclass
      join pg_class s on s.oid = p.refobjid and s.relkind = 'S'
      join pg_namespace sn on sn.oid = s.relnamespace
     where n.nspname = %s and c.relname = %s order by 1, 2
"""


def owners_path(conn: Connection, mapping: Mapping, search_path: Iterable[str]) -> list[str]:
    """Return the search path of the owner's triggers: that of the first init's session, and the table's schema.

    It is not this session's path, because another user's init could remove a schema that triggers need.
    """
    exists = conn.execute("select to_regclass('llmqueue.mapping') is not null").fetchone()
    # to_jsonb: the column came with a later migration
    stored = (
        conn.execute("select to_jsonb(m) -> 'search_path' from llmqueue.mapping m").fetchone()
        if exists and exists[0]
        else None
    )
    if stored and isinstance(stored[0], list):
        return [str(name) for name in stored[0]]
    wanted = [name for name in search_path if name not in {"pg_catalog", "pg_temp"}]
    return list(dict.fromkeys([*wanted, mapping.table_schema]))


def read_cluster(conn: Connection, mapping: Mapping, owners_path: Iterable[str]) -> Cluster:
    """Return the state of the cluster on which the rights depend."""
    args = {
        "roles": list(ROLES),
        "path": list(owners_path),
        "schema": mapping.table_schema,
        "table": mapping.table_name,
    }
    row = conn.execute(_CLUSTER, args).fetchone()
    assert row is not None  # noqa: S101 (a select without from has one row)
    existing, powerful, may_create, role, open_schemas, trigger_for_all, is_schema_public = row
    sequences = conn.execute(_SEQUENCES, (mapping.table_schema, mapping.table_name)).fetchall()
    return Cluster(
        frozenset(existing),
        tuple(powerful),
        bool(may_create),
        str(role),
        tuple(open_schemas),
        bool(trigger_for_all),
        bool(is_schema_public),
        tuple((str(schema), str(name)) for schema, name in sequences),
    )


def check(cluster: Cluster, mapping: Mapping, *, with_roles: bool) -> list[str]:
    """Return what prevents `init --roles` or makes the roles useless, each with its remedy."""
    problems: list[str] = []
    missing = [name for name in ROLES if name not in cluster.existing] if with_roles else []
    if missing and not cluster.may_create_roles:
        create = " ".join(f"create role {name} nologin;" for name in missing)
        problems.append(
            f"the role {quoted(cluster.role)} may not create roles. Let an administrator run: {create} "
            "Then run init --roles again."
        )
    problems += [
        f"the role {name} exists and has attributes beyond any REVOKE: superuser, roles, databases, replication. "
        f"Run: alter role {name} nosuperuser nocreaterole nocreatedb nobypassrls noreplication;"
        for name in cluster.powerful
    ]
    problems += [
        f"everybody may create functions in schema {quoted(name)}, which is in the search path of your triggers: "
        "whoever has a worker's password could plant a function that runs with your rights. "
        f"Run: revoke create on schema {quoted(name)} "
        "from public; or run the first init with a search_path without that schema (later: the column search_path of "
        "llmqueue.mapping)."
        for name in cluster.open_schemas
    ]
    if cluster.trigger_for_all:
        problems.append(
            f"everybody may create triggers on {mapping.label}, which would run with your rights. "
            f"Run: revoke trigger on {mapping.label} from public;"
        )
    return problems


def create_step(cluster: Cluster) -> list[Step]:
    """Return the step that creates the missing roles."""
    missing = [name for name in ROLES if name not in cluster.existing]
    if not missing:
        return []
    statements = [
        mapping_sql.text(statement)
        for name in missing
        for statement in (
            sql.SQL("create role {} nologin").format(sql.Identifier(name)),
            sql.SQL("comment on role {} is {}").format(sql.Identifier(name), sql.Literal(ROLES[name])),
        )
    ]
    return [Step("create roles", f"create the roles {', '.join(missing)}", tuple(statements))]
