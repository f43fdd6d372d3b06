"""How a verb comes to its database."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import psycopg
    from psycopg.rows import TupleRow

    from llmqueue.settings import Settings


def open_database(verb: str, settings: Settings | None = None) -> psycopg.Connection[TupleRow]:
    """Opens an autocommit connection to a database that `llmqueue init` has finished with."""
    from llmqueue.db.connect import connect, dsn, require_schema
    from llmqueue.settings import load_settings

    conn = connect(dsn(settings or load_settings()), application_name=f"llmqueue {verb}")
    try:
        require_schema(conn)
    except BaseException:
        conn.close()
        raise
    return conn
