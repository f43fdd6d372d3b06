"""The existing table, as the catalog describes it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import psycopg
from psycopg.rows import TupleRow, class_row

Connection = psycopg.Connection[TupleRow]

ORDINARY: Final = "r"


@dataclass(frozen=True, slots=True)
class Column:
    """A column; `base_type` is the type below any domains, without a length."""

    name: str
    type: str
    base_type: str
    kind: str  # pg_type.typtype of the base type: b, e, c, r, m
    category: str  # pg_type.typcategory of the base type
    length: int | None
    is_not_null: bool
    is_generated: bool
    default: str | None
    labels: tuple[str, ...]  # the labels of an enum

    def __post_init__(self) -> None:
        object.__setattr__(self, "labels", tuple(self.labels))


@dataclass(frozen=True, slots=True)
class Check:
    """A CHECK constraint: its expression over the table's bare column names."""

    name: str
    expression: str
    definition: str
    columns: list[str]


@dataclass(frozen=True, slots=True)
class Index:
    """An index; it is invalid if its build was interrupted."""

    name: str
    table_oid: int
    is_valid: bool


@dataclass(frozen=True, slots=True)
class Relation:
    """The row of pg_class, and the rights of this session on the table."""

    oid: int
    schema: str
    name: str
    kind: str
    persistence: str
    is_partition: bool
    has_children: bool
    has_row_security: bool
    forces_row_security: bool
    owner: str
    is_owner: bool
    may_create_in_schema: bool
    role: str


@dataclass(frozen=True, slots=True)
class Table:
    """All that the checks and the plan need to know about the user's table."""

    relation: Relation
    columns: dict[str, Column]
    unique_columns: frozenset[str]  # NOT NULL columns, each with a unique index of its own
    primary_key: tuple[str, ...]
    checks: tuple[Check, ...]
    has_trigger: bool
    row_type_users: tuple[str, ...]  # tables and types with a column of the table's row type

    @property
    def free_names(self) -> list[str]:
        """The column names, for suggestions."""
        return list(self.columns)


_RELATION: Final = """
    select c.oid::bigint as oid, n.nspname as schema, c.relname as name, c.relkind::text as kind,
           c.relpersistence::text as persistence, c.relispartition as is_partition,
           exists (select from pg_inherits i where i.inhparent = c.oid) as has_children,
           c.relrowsecurity as has_row_security, c.relforcerowsecurity as forces_row_security,
           pg_get_userbyid(c.relowner) as owner, pg_get_userbyid(c.relowner) = current_user as is_owner,
           has_schema_privilege(n.oid, 'create') as may_create_in_schema, current_user::text as role
    from pg_class c join pg_namespace n on n.oid = c.relnamespace
    where n.nspname = %s and c.relname = %s and c.relkind in ('r', 'p', 'v', 'm', 'f')
"""

_COLUMNS: Final = """
    with recursive type_of(attnum, type, typmod) as (
        select attnum, atttypid, atttypmod from pg_attribute
        where attrelid = %(oid)s and attnum > 0 and not attisdropped
        union all
        select o.attnum, d.typbasetype, d.typtypmod
        from type_of o join pg_type d on d.oid = o.type where d.typtype = 'd'
    )
    select a.attname as name, format_type(a.atttypid, a.atttypmod) as type, format_type(b.oid, -1) as base_type,
           b.typtype::text as kind, b.typcategory::text as category,
           case when b.oid in ('varchar'::regtype, 'bpchar'::regtype) and o.typmod > 4 then o.typmod - 4 end as length,
           a.attnotnull as is_not_null, a.attgenerated <> '' as is_generated,
           pg_get_expr(v.adbin, v.adrelid) as default,
           array(select e.enumlabel::text from pg_enum e where e.enumtypid = b.oid order by e.enumsortorder) as labels
    from pg_attribute a
    join type_of o using (attnum)
    join pg_type b on b.oid = o.type and b.typtype <> 'd'
    left join pg_attrdef v on v.adrelid = a.attrelid and v.adnum = a.attnum
    where a.attrelid = %(oid)s
    order by a.attnum
"""

_KEYS: Final = """
    select i.indisprimary, array_agg(a.attname::text order by k.place), bool_and(a.attnotnull)
    from pg_index i
    cross join unnest(i.indkey::smallint[]) with ordinality k(attnum, place)
    join pg_attribute a on a.attrelid = i.indrelid and a.attnum = k.attnum
    where i.indrelid = %s and i.indisunique and i.indisvalid and i.indimmediate and i.indpred is null
          and i.indexprs is null and k.place <= i.indnkeyatts
    group by i.indexrelid, i.indisprimary
"""

_CHECKS: Final = """
    select conname as name, pg_get_expr(conbin, conrelid) as expression, pg_get_constraintdef(oid) as definition,
           array(select attname::text from pg_attribute where attrelid = conrelid and attnum = any(conkey)) as columns
    from pg_constraint
    where conrelid = %s and contype = 'c'
    order by conname
"""

_TRIGGER: Final = """
    select exists (select from pg_trigger where tgrelid = %s and tgname = 'llmqueue_wake_up' and not tgisinternal
                                               and tgnewtable is not null)
"""

_ROW_TYPE_USERS: Final = """
    select distinct a.attrelid::regclass::text
    from pg_class c join pg_type t on t.oid = c.reltype
    join pg_attribute a on a.atttypid in (t.oid, t.typarray) and not a.attisdropped
    where c.oid = %s order by 1
"""

_INDEXES: Final = """
    select c.relname as name, i.indrelid::bigint as table_oid, i.indisvalid and i.indisready as is_valid
    from pg_index i join pg_class c on c.oid = i.indexrelid join pg_namespace n on n.oid = c.relnamespace
    where n.nspname = %s and c.relname = any(%s)
"""


def read_table(conn: Connection, schema: str, name: str) -> Table | None:
    """Return the description of a table, view or similar relation; None if none has that name."""
    with conn.cursor(row_factory=class_row(Relation)) as cursor:
        relation = cursor.execute(_RELATION, (schema, name)).fetchone()
    if relation is None:
        return None
    with conn.cursor(row_factory=class_row(Column)) as cursor:
        columns = cursor.execute(_COLUMNS, {"oid": relation.oid}).fetchall()
    with conn.cursor(row_factory=class_row(Check)) as cursor:
        checks = cursor.execute(_CHECKS, (relation.oid,)).fetchall()
    keys = _read_keys(conn, relation.oid)
    has_trigger = conn.execute(_TRIGGER, (relation.oid,)).fetchone()
    return Table(
        relation=relation,
        columns={column.name: column for column in columns},
        unique_columns=frozenset(names[0] for _, names, not_null in keys if len(names) == 1 and not_null),
        primary_key=next((names for is_primary, names, _ in keys if is_primary), ()),
        checks=tuple(checks),
        has_trigger=bool(has_trigger and has_trigger[0]),
        row_type_users=tuple(str(name) for (name,) in conn.execute(_ROW_TYPE_USERS, (relation.oid,))),
    )


def read_indexes(conn: Connection, schema: str, names: Sequence[str]) -> dict[str, Index]:
    """Return the named indexes that exist, valid or not."""
    with conn.cursor(row_factory=class_row(Index)) as cursor:
        return {index.name: index for index in cursor.execute(_INDEXES, (schema, list(names)))}


def table_names(conn: Connection, schema: str) -> list[str]:
    """Return the tables and views of a schema."""
    rows = conn.execute(
        "select relname::text from pg_class where relnamespace = to_regnamespace(quote_ident(%s)) and relkind in "
        "('r', 'p', 'v', 'm', 'f') order by relname",
        (schema,),
    )
    return [str(name) for (name,) in rows]


def schema_names(conn: Connection) -> list[str]:
    """Return all schemas except the system's and llmqueue's."""
    rows = conn.execute(
        r"select nspname::text from pg_namespace where nspname !~ '^pg_' "
        "and nspname not in ('information_schema', 'llmqueue', 'llmqueue_internal') order by nspname"
    )
    return [str(name) for (name,) in rows]


def _read_keys(conn: Connection, oid: int) -> list[tuple[bool, tuple[str, ...], bool]]:
    keys = []
    for is_primary, names, not_null in conn.execute(_KEYS, (oid,)):
        assert isinstance(names, list)  # noqa: S101 (array_agg of names)
        keys.append((bool(is_primary), tuple(str(name) for name in names), bool(not_null)))
    return keys
