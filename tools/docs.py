"""Writes the generated pages and the snapshot of the schema: `make docs`, or `python -m tools.docs`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Final

import psycopg

from llmqueue.install.adopt import AdoptionSpec, install
from tests.support.server import start_server
from tools import program_pages, schema, sql_pages

ROOT: Final = Path(__file__).resolve().parents[1]
SNAPSHOT: Final = "tests/snapshots/schema.txt"

# The first pages need only the program, the others a database with the default table.
PROGRAM_PAGES: Final[dict[str, Callable[[], str]]] = {
    "docs/cli.md": program_pages.cli_page,
    "docs/configuration.md": program_pages.configuration_page,
    "docs/events.md": program_pages.events_page,
}
SCHEMA_PAGES: Final[dict[str, Callable[[schema.Connection], str]]] = {
    "docs/sql-api.md": sql_pages.sql_api,
    SNAPSHOT: schema.dump,
}


def main() -> None:
    """Rewrites all pages, on the newest PostgreSQL of the wheel."""
    for name, page in PROGRAM_PAGES.items():
        (ROOT / name).write_text(page(), encoding="utf-8")
    with start_server(18) as server:
        with psycopg.connect(server.dsn(), autocommit=True) as conn:
            conn.execute("create database docs")
        install(server.dsn("docs"), AdoptionSpec())
        with psycopg.connect(server.dsn("docs"), autocommit=True) as conn:
            for name, schema_page in SCHEMA_PAGES.items():
                (ROOT / name).write_text(schema_page(conn), encoding="utf-8")


if __name__ == "__main__":
    main()
