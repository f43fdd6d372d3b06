"""The schema of llmqueue: the migrations, then functions and views, which are recreated whenever they differ.

For each part llmqueue.applied keeps two hashes: of its source text, and of the catalog's definition after it was
applied. Another release changes the first hash, an edit or a drop by hand the second.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from psycopg import sql

from llmqueue.db.mapping import Mapping
from llmqueue.db.resources import SqlFile, function_files, sql_files
from llmqueue.errors import SchemaTooNew
from llmqueue.install import mapping_sql, rights
from llmqueue.install.steps import Step
from llmqueue.install.table import Connection

_MIGRATION: Final = re.compile(r"schema/(?P<version>\d{4})_(?P<name>\w+)\.sql")

# A function's definition has the types of its arguments and results, so it also shows an owner's ALTER TYPE … RENAME.
_FUNCTIONS_HASH: Final = """
select md5(coalesce(string_agg(d, '' order by d collate "C"), '')) from (
    select pg_get_functiondef(oid) from pg_proc
    where pronamespace in (to_regnamespace('llmqueue'), to_regnamespace('llmqueue_internal')) and prokind in ('f', 'p')
    union all
    select pg_get_triggerdef(t.oid) from pg_trigger t join pg_class c on c.oid = t.tgrelid
    where c.relnamespace = to_regnamespace('llmqueue') and not t.tgisinternal
) as definition(d)
"""
_VIEWS_HASH: Final = """
select md5(coalesce(string_agg(relname || pg_get_viewdef(oid), '' order by relname collate "C"), ''))
from pg_class where relnamespace = to_regnamespace('llmqueue') and relkind = 'v' and relname <> 'task'
"""
_MAPPING_HASH: Final = """
select md5(coalesce(string_agg(d, '' order by d collate "C"), '')) from (
    select pg_get_functiondef(oid) from pg_proc
    where pronamespace = to_regnamespace('llmqueue_internal')
      and proname in ('status_word', 'answer_value', 'mark_done', 'mark_queued', 'user_key', 'wake_up')
    union all
    select pg_get_viewdef(oid) from pg_class where oid = to_regclass('llmqueue.task')
) as definition(d)
"""


@dataclass(frozen=True, slots=True)
class Part:
    """A part that is applied as a whole: its statements, and the query that hashes its definition in the catalog."""

    name: str
    title: str
    statements: tuple[str, ...]
    installed_hash: str

    @property
    def source_hash(self) -> str:
        return digest(self.statements)

    def step(self) -> Step:
        """Return the step that applies it."""
        record = _record(
            self.name, self.source_hash, sql.SQL("({})").format(mapping_sql.type_name(self.installed_hash.strip()))
        )
        return Step(self.name, self.title, (*self.statements, record))


@dataclass(frozen=True, slots=True)
class Applied:
    """A row of llmqueue.applied; `is_intact` tells whether the catalog still has the applied definition."""

    source_hash: str
    is_intact: bool


def digest(statements: Iterable[str]) -> str:
    """Return the hash of a part's text."""
    return hashlib.md5("\0".join(statements).encode(), usedforsecurity=False).hexdigest()


def record_index(name: str, statement: str) -> str:
    """Return the statement that records the definition of one of our indexes."""
    return _record(f"index {name}", digest([statement]), sql.SQL("null"))


def migration_steps(applied: frozenset[int]) -> list[Step]:
    """Return the migrations that are not applied to this database.

    Raises:
        SchemaTooNew: the database has a migration that this program does not know.
    """
    files = {version_of(file): file for file in sql_files("schema")}
    newest = max(files)
    if applied and max(applied) > newest:
        msg = (
            f"the database's llmqueue schema is at version {max(applied)}, and this program knows {newest}: a newer "
            "llmqueue has upgraded it. Install that release here too."
        )
        raise SchemaTooNew(msg)
    return [_migration(version, file) for version, file in sorted(files.items()) if version not in applied]


def upgrade(mapping: Mapping, migrations: Sequence[Step], rights_steps: Sequence[Step]) -> Step:
    """Return one step for migrations of a schema that workers use, with all functions, views and rights.

    A migration drops functions whose signatures change. Workers see the old functions or the new ones, never a missing
    one, and never one that their role may not call yet.
    """
    versions = ", ".join(step.key.removeprefix("migration ") for step in migrations)
    steps = [*migrations, *(part.step() for part in parts(mapping)), *rights_steps]
    return Step(
        "upgrade",
        f"upgrade llmqueue's schema to version {versions}, while workers run",
        tuple(statement for step in steps for statement in step.statements),
    )


def version_of(file: SqlFile) -> int:
    """Return the number of a migration's file name."""
    match = _MIGRATION.fullmatch(file.name)
    if match is None:
        msg = f"sql/{file.name}: a migration is named NNNN_verb_noun.sql"
        raise ValueError(msg)
    return int(match["version"])


def parts(mapping: Mapping) -> tuple[Part, Part, Part]:
    """Return mapping, functions and views, in the order in which they are applied."""
    views = sql_files("api/views")
    drops = _drop_views(views)
    # A later release may add columns, so the view and our views on it are dropped and created again. Not with CASCADE:
    # llmqueue must not drop an owner's view that depends on one of ours, and the server's error names such a view.
    drop_task = "drop view if exists llmqueue.task"
    mapping_statements = (*drops, drop_task, *mapping_sql.functions(mapping), mapping_sql.view(mapping))
    return (
        Part(
            "mapping",
            "generate the view llmqueue.task and the functions that access your table",
            mapping_statements,
            _MAPPING_HASH,
        ),
        Part("functions", "create the functions", _texts(function_files()), _FUNCTIONS_HASH),
        Part("views", "create the views", (*drops, *_texts(views)), _VIEWS_HASH),
    )


def rights_parts(for_everybody: tuple[str, ...], for_roles: tuple[str, ...]) -> list[Part]:
    """Return the rights. They are applied last, because a recreated object has lost its rights."""
    revoked = Part("rights", "revoke all rights on the schema from public", for_everybody, rights.PUBLIC_HASH)
    granted = Part("roles", "grant each role its rights", for_roles, rights.ROLES_HASH)
    return [revoked, granted] if for_roles else [revoked]


def read_versions(conn: Connection) -> frozenset[int]:
    """Return the versions of the applied migrations; empty before the first init."""
    if not _exists(conn, "llmqueue.schema_version"):
        return frozenset()
    return frozenset(int(str(version)) for (version,) in conn.execute("select version from llmqueue.schema_version"))


def read_applied(conn: Connection) -> dict[str, Applied]:
    """Return the applied parts, each with whether it is still intact."""
    if not _exists(conn, "llmqueue.applied"):
        return {}
    query = sql.SQL(
        "select part, source_hash, installed_hash is null or installed_hash = case part "
        "when 'mapping' then ({}) when 'functions' then ({}) when 'views' then ({}) when 'rights' then ({}) "
        "when 'roles' then ({}) end from llmqueue.applied"
    ).format(
        *(
            mapping_sql.type_name(text)
            for text in (_MAPPING_HASH, _FUNCTIONS_HASH, _VIEWS_HASH, rights.PUBLIC_HASH, rights.ROLES_HASH)
        )
    )
    return {
        str(part): Applied(str(source_hash), bool(is_intact)) for part, source_hash, is_intact in conn.execute(query)
    }


def _migration(version: int, file: SqlFile) -> Step:
    name = file.name.removeprefix("schema/").removesuffix(".sql")
    record = mapping_sql.text(
        sql.SQL("insert into llmqueue.schema_version (version, name) values ({}, {})").format(
            sql.Literal(version), sql.Literal(name)
        )
    )
    return Step(f"migration {version}", f"migrate llmqueue's schema: {name}", (f"-- {file.name}\n{file.text}", record))


def _record(part: str, source_hash: str, installed_hash: sql.Composable) -> str:
    return mapping_sql.text(
        sql.SQL(
            "insert into llmqueue.applied (part, source_hash, installed_hash) values ({}, {}, {})\n"
            "on conflict (part) do update set source_hash = excluded.source_hash,\n"
            "    installed_hash = excluded.installed_hash, applied_at = now()"
        ).format(sql.Literal(part), sql.Literal(source_hash), installed_hash)
    )


def _texts(files: Iterable[SqlFile]) -> tuple[str, ...]:
    return tuple(f"-- {file.name}\n{file.text}" for file in files)


def _drop_views(files: Iterable[SqlFile]) -> tuple[str, ...]:
    """Return one statement that drops all views, because they may depend on each other."""
    stems = [file.name.rsplit("/", 1)[1].removesuffix(".sql") for file in files]
    if not stems:
        return ()
    names = sql.SQL(", ").join(sql.Identifier("llmqueue", stem) for stem in stems)
    return (mapping_sql.text(sql.SQL("drop view if exists {}").format(names)),)


def _exists(conn: Connection, table: str) -> bool:
    row = conn.execute("select to_regclass(%s) is not null", (table,)).fetchone()
    return bool(row and row[0])
