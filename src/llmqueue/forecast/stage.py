"""The temporary database of a simulation, on an embedded server that holds nothing else."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final
from uuid import uuid4

from psycopg import sql
from psycopg.conninfo import make_conninfo
from psycopg.types.json import Jsonb

from llmqueue.db.connect import connect
from llmqueue.embedded import server as embedded
from llmqueue.errors import DatabaseUnreachable
from llmqueue.forecast import simulated_clock
from llmqueue.forecast.scenario import Scenario, affordable
from llmqueue.forecast.scheduler import SqlScheduler
from llmqueue.install.adopt import AdoptionSpec, install

if TYPE_CHECKING:
    import psycopg
    from psycopg.rows import TupleRow

APPLICATION = "llmqueue simulate"
_PREFIX = "simulation_"
# What is simulated may be lost: without it a claim would wait for the disk each time.
_CARELESS: Final = {"fsync": "off", "full_page_writes": "off", "max_connections": "20", "shared_buffers": "256MB"}
_ANALYZED_TABLES: Final = ("tasks", "llmqueue.attempt", "llmqueue.ledger_grant", "llmqueue.ledger_cell")


def start_server(home: Path) -> str:
    """Starts the server of simulations, in a folder of its own below `home`; returns a DSN of it."""
    folder = home / "simulate"
    try:
        return embedded.start(folder, options=_CARELESS)
    except DatabaseUnreachable as error:
        # It writes without care for a loss of power, so that may be the reason.
        message = f"{error}\nIt holds simulations only: remove {folder} and try again"
        raise DatabaseUnreachable(message) from None


@contextmanager
def temporary_database(server: str) -> Iterator[str]:
    """Makes an installed database on that server, gone afterwards; also those that a killed simulation has left."""
    name = f"{_PREFIX}{uuid4().hex[:12]}"
    with connect(make_conninfo(server, dbname="postgres"), application_name=APPLICATION) as conn:
        conn.execute("select pg_advisory_lock(hashtext(%s))", (_PREFIX,))
        _drop_left(conn)
        conn.execute(sql.SQL("create database {}").format(sql.Identifier(name)))
        dsn = make_conninfo(server, dbname=name)
        try:
            with connect(dsn, application_name=APPLICATION) as simulated:  # in use from now on, for the one who drops
                conn.execute("select pg_advisory_unlock(hashtext(%s))", (_PREFIX,))
                install(dsn, AdoptionSpec())
                simulated.execute(simulated_clock.INSTALL)
                yield dsn
        finally:
            conn.execute(sql.SQL("drop database if exists {} with (force)").format(sql.Identifier(name)))


def _drop_left(conn: psycopg.Connection[TupleRow]) -> None:
    left = conn.execute(
        """
        select d.datname from pg_database d
         where d.datname like %s and not exists (select from pg_stat_activity a where a.datname = d.datname)
        """,
        (_PREFIX.replace("_", r"\_") + "%",),
    ).fetchall()
    for (name,) in left:
        conn.execute(sql.SQL("drop database if exists {} with (force)").format(sql.Identifier(name)))


def configure(conn: psycopg.Connection[TupleRow], scenario: Scenario) -> None:
    """Writes models and pools."""
    for model in scenario.models:
        columns = {"model": model.name, "rpm": model.rpm, **model.columns}
        values = {name: Jsonb(value) if isinstance(value, dict) else value for name, value in columns.items()}
        insert = sql.SQL("insert into llmqueue.model_config ({}) values ({})").format(
            sql.SQL(", ").join(map(sql.Identifier, columns)), sql.SQL(", ").join(map(sql.Placeholder, columns))
        )
        conn.execute(insert, values)
    for member in scenario.pools:
        conn.execute(
            "insert into llmqueue.pool_member (pool, model, weight) values (%s, %s, %s)",
            (member.pool, member.model, member.weight),
        )
    if scenario.seed is not None:
        conn.execute("select setseed(%s)", (scenario.seed % 1000 / 1000,))


def fill(conn: psycopg.Connection[TupleRow], scheduler: SqlScheduler, scenario: Scenario) -> tuple[list[int], int]:
    """Inserts the backlog; returns the first key of each lane and the last of all (0 without a backlog).

    Of a long lane only as many tasks as can be called in the time simulated.
    """
    first_keys, last_key = [], 0
    for lane in scenario.backlog:
        first_keys.append(last_key + 1)
        last_key = scheduler.insert(lane.lane, affordable(scenario, lane), lane.priority)
    for table in _ANALYZED_TABLES:
        conn.execute(sql.SQL("vacuum analyze {}").format(sql.SQL(table)))
    return first_keys, last_key
