"""Our own schema: the migrations, then functions and views, which are applied anew whenever they differ.

Of each part llmqueue.applied keeps two hashes: of the text it was made from, and of what the catalog printed
afterwards. Another release changes the first, an edit or a drop by hand the second.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from psycopg import sql

from llmqueue.db.mapping import Mapping
from llmqueue.db.resources import SqlFile, sql_files
from llmqueue.errors import SchemaTooNew
from llmqueue.install import rights, seam
from llmqueue.install.steps import Step
from llmqueue.install.table import Connection

_MIGRATION: Final = re.compile(r"migrations/(?P<version>\d{4})_(?P<name>\w+)\.sql")

# Types of arguments and results are part of a function's definition, so an owner's ALTER TYPE … RENAME shows too.
_FUNCTIONS_HASH: Final = """
select md5(coalesce(string_agg(d, '' order by d collate "C"), '')) from (
    select pg_get_functiondef(oid) from pg_proc
    where pronamespace = to_regnamespace('llmqueue') and prokind in ('f', 'p')
    union all
    select pg_get_triggerdef(t.oid) from pg_trigger t join pg_class c on c.oid = t.tgrelid
    where c.relnamespace = to_regnamespace('llmqueue') and not t.tgisinternal
) as definition(d)
"""
_VIEWS_HASH: Final = """
select md5(coalesce(string_agg(relname || pg_get_viewdef(oid), '' order by relname collate "C"), ''))
from pg_class where relnamespace = to_regnamespace('llmqueue') and relkind = 'v' and relname <> 'task'
"""
_SEAM_HASH: Final = """
select md5(coalesce(string_agg(d, '' order by d collate "C"), '')) from (
    select pg_get_functiondef(oid) from pg_proc
    where pronamespace = to_regnamespace('llmqueue')
      and proname in ('status_word', 'answer_value', 'mark_done', 'mark_queued', 'user_key', 'wake_up')
    union all
    select pg_get_viewdef(oid) from pg_class where oid = to_regclass('llmqueue.task')
) as definition(d)
"""


@dataclass(frozen=True, slots=True)
class Part:
    """A part that is applied as a whole: what it is made from, and how the catalog's view of it is hashed."""

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
            self.name, self.source_hash, sql.SQL("({})").format(seam.type_name(self.installed_hash.strip()))
        )
        return Step(self.name, self.title, (*self.statements, record))


@dataclass(frozen=True, slots=True)
class Applied:
    """A row of llmqueue.applied, with the hash of what is there now."""

    source_hash: str
    is_intact: bool


def digest(statements: Iterable[str]) -> str:
    """Return the hash of a part's text."""
    return hashlib.md5("\0".join(statements).encode(), usedforsecurity=False).hexdigest()


def record_index(name: str, statement: str) -> str:
    """Return the statement that remembers what an index of ours is made from."""
    return _record(f"index {name}", digest([statement]), sql.SQL("null"))


def migration_steps(applied: frozenset[int]) -> list[Step]:
    """Return the migrations that this database has not seen.

    Raises:
        SchemaTooNew: it has seen one that this program does not know.
    """
    files = {version_of(file): file for file in sql_files("migrations")}
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

    A migration drops functions whose signatures change. Workers see the old ones or the new ones, never none, and
    never one that their role may not call yet.
    """
    versions = ", ".join(step.key.removeprefix("migration ") for step in migrations)
    steps = [*migrations, *(part.step() for part in parts(mapping)), *rights_steps]
    return Step(
        "upgrade",
        f"upgrade llmqueue's schema to version {versions}, under the workers",
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
    """Return seam, functions and views, in the order in which they are applied."""
    views = sql_files("views")
    drops = _drop_views(views)
    # A view may gain columns in a later release: dropped and made anew, ours with it. Not with CASCADE: a view of the
    # owner's that hangs on one of ours is not ours to drop, and the server's refusal names it.
    drop_task = "drop view if exists llmqueue.task"
    seam_statements = (*drops, drop_task, *seam.functions(mapping), seam.view(mapping))
    return (
        Part(
            "seam",
            "generate the view llmqueue.task and the functions that speak of your table",
            seam_statements,
            _SEAM_HASH,
        ),
        Part("functions", "create the functions", _texts(sql_files("functions")), _FUNCTIONS_HASH),
        Part("views", "create the views", (*drops, *_texts(views)), _VIEWS_HASH),
    )


def rights_parts(for_everybody: tuple[str, ...], for_roles: tuple[str, ...]) -> list[Part]:
    """Return the rights: applied after all else, since what is made anew has lost its rights."""
    taken = Part("rights", "take the schema from everybody", for_everybody, rights.PUBLIC_HASH)
    given = Part("roles", "grant each role what it needs", for_roles, rights.ROLES_HASH)
    return [taken, given] if for_roles else [taken]


def read_versions(conn: Connection) -> frozenset[int]:
    """Return the applied migrations; nothing before the first init."""
    if not _exists(conn, "llmqueue.schema_version"):
        return frozenset()
    return frozenset(int(str(version)) for (version,) in conn.execute("select version from llmqueue.schema_version"))


def read_applied(conn: Connection) -> dict[str, Applied]:
    """Return what has been applied, and whether it is still as it was."""
    if not _exists(conn, "llmqueue.applied"):
        return {}
    query = sql.SQL(
        "select part, source_hash, installed_hash is null or installed_hash = case part "
        "when 'seam' then ({}) when 'functions' then ({}) when 'views' then ({}) when 'rights' then ({}) "
        "when 'roles' then ({}) end from llmqueue.applied"
    ).format(
        *(
            seam.type_name(text)
            for text in (_SEAM_HASH, _FUNCTIONS_HASH, _VIEWS_HASH, rights.PUBLIC_HASH, rights.ROLES_HASH)
        )
    )
    return {
        str(part): Applied(str(source_hash), bool(is_intact)) for part, source_hash, is_intact in conn.execute(query)
    }


def _migration(version: int, file: SqlFile) -> Step:
    name = file.name.removeprefix("migrations/").removesuffix(".sql")
    record = seam.text(
        sql.SQL("insert into llmqueue.schema_version (version, name) values ({}, {})").format(
            sql.Literal(version), sql.Literal(name)
        )
    )
    return Step(f"migration {version}", f"migrate llmqueue's schema: {name}", (f"-- {file.name}\n{file.text}", record))


def _record(part: str, source_hash: str, installed_hash: sql.Composable) -> str:
    return seam.text(
        sql.SQL(
            "insert into llmqueue.applied (part, source_hash, installed_hash) values ({}, {}, {})\n"
            "on conflict (part) do update set source_hash = excluded.source_hash,\n"
            "    installed_hash = excluded.installed_hash, applied_at = now()"
        ).format(sql.Literal(part), sql.Literal(source_hash), installed_hash)
    )


def _texts(files: Iterable[SqlFile]) -> tuple[str, ...]:
    return tuple(f"-- {file.name}\n{file.text}" for file in files)


def _drop_views(files: Iterable[SqlFile]) -> tuple[str, ...]:
    """Return one statement for all, since they may hang on each other."""
    stems = [file.name.rsplit("/", 1)[1].removesuffix(".sql") for file in files]
    if not stems:
        return ()
    names = sql.SQL(", ").join(sql.Identifier("llmqueue", stem) for stem in stems)
    return (seam.text(sql.SQL("drop view if exists {}").format(names)),)


def _exists(conn: Connection, table: str) -> bool:
    row = conn.execute("select to_regclass(%s) is not null", (table,)).fetchone()
    return bool(row and row[0])
