"""Warnings about what the new columns and the trigger can break elsewhere, as far as the catalog shows it."""

from __future__ import annotations

from llmqueue.install.table import Connection, Table

# Functions with a statement on the table whose meaning changes with the table's columns.
_FUNCTIONS = r"""
    select p.oid::regprocedure::text
    from pg_proc p join pg_namespace n on n.oid = p.pronamespace
    where n.nspname not in ('pg_catalog', 'information_schema', 'llmqueue', 'llmqueue_internal')
      and p.prosrc ~* any (array[
        '\mcopy\s+("?' || %(schema)s || '"?\.)?"?' || %(name)s || '"?\s+(from|to)\M',
        '\minsert\s+into\s+("?' || %(schema)s || '"?\.)?"?' || %(name)s || '"?\s+(select|values)\M',
        '\minsert\s+into\s+\S+\s+select\s+\*\s+from\s+("?' || %(schema)s || '"?\.)?"?' || %(name)s || '"?\M',
        '("?' || %(schema)s || '"?\.)?"?' || %(name)s || '"?%%rowtype'])
    order by 1
"""
_PUBLICATIONS = """
    select distinct pubname::text from pg_publication_tables where schemaname = %s and tablename = %s order by 1
"""
_NO_COLUMNS = (
    "the new columns affect COPY without a column list, INSERT … SELECT *, and code that reads rows by position. "
    "init cannot see the code of clients: look for such statements before you continue."
)


def warnings(conn: Connection, table: Table) -> list[str]:
    """Return general advice, and findings about other code that reads or writes the table."""
    relation = table.relation
    names = {"schema": _as_regex(relation.schema), "name": _as_regex(relation.name)}
    found = [_NO_COLUMNS]
    if functions := _first(conn.execute(_FUNCTIONS, names).fetchall()):
        found.append(f"these functions depend on the table's list of columns; name the columns in them: {functions}.")
    if publications := _first(conn.execute(_PUBLICATIONS, (relation.schema, relation.name)).fetchall()):
        found.append(
            f"the table is published ({publications}): add the new columns at each subscriber first, "
            "or give the publication a list of columns."
        )
    if table.row_type_users:
        users = ", ".join(table.row_type_users)
        found.append(f"the table's row type is the type of columns in {users}: their values gain the new fields.")
    if relation.forces_row_security:
        found.append(
            "row level security is forced on the table: its policies apply to llmqueue too, "
            "and tasks that they hide from the owner are never solved."
        )
    elif relation.has_row_security:
        found.append(
            "row level security is enabled: llmqueue has the rights of the owner, who sees all rows; "
            "a role that reads llmqueue.task sees all rows too."
        )
    return found


def _first(rows: list[tuple[object, ...]]) -> str:
    names = [str(name) for (name,) in rows]
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def _as_regex(name: str) -> str:
    return "".join(letter if letter.isalnum() or letter == "_" else f"\\{letter}" for letter in name)
