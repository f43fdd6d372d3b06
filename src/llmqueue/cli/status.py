"""`llmqueue status`: what waits, what runs, how much of the limits is used, who works, and how long it will take."""

from __future__ import annotations

import time
from contextlib import suppress
from datetime import datetime
from typing import TYPE_CHECKING, Annotated

import typer

from llmqueue.cli.database import open_database
from llmqueue.cli.model_status import ModelStatus, read_models
from llmqueue.cli.output import console
from llmqueue.cli.pools import read_pools
from llmqueue.cli.status_view import Quarantine, Snapshot, Waiting, Worker, notes, page, quiet_minute, used_up, write
from llmqueue.errors import LlmqueueError

if TYPE_CHECKING:
    from collections.abc import Iterator

    import psycopg
    from psycopg.rows import TupleRow

    from llmqueue.settings import Settings


QUIET = "select because, quiet_until from llmqueue.epoch_status where quiet_until > clock_timestamp()"


def status(
    watch: Annotated[bool, typer.Option("--watch", "-w", help="Go on until Ctrl-C; live on a terminal.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Write JSON, with --watch one line each time.")] = False,
    interval: Annotated[float, typer.Option(min=0.1, max=3600, help="Seconds between two looks.")] = 1.0,
) -> None:
    """Show backlog, rates against limits, workers and the time left; never counts a large backlog in full."""
    from llmqueue.settings import load_settings

    settings = load_settings()
    if not watch:
        with open_database("status", settings) as conn:
            write(read_snapshot(conn, settings), as_json=as_json)
        return
    with suppress(KeyboardInterrupt):  # the usual way to end it, not a failure
        _watch(settings, interval, as_json=as_json)


def _watch(settings: Settings, interval: float, *, as_json: bool) -> None:
    screen = console()
    if screen.is_terminal and not as_json:
        from rich.live import Live

        with Live(console=screen, screen=False, auto_refresh=False, vertical_overflow="visible") as live:
            for look in _looks(settings, interval):
                live.update(page(look), refresh=True)
    else:
        for look in _looks(settings, interval):
            write(look, as_json=as_json)


def read_snapshot(conn: psycopg.Connection[TupleRow], settings: Settings) -> Snapshot:
    """Reads all that `status` shows."""
    from psycopg.rows import class_row

    with conn.cursor(row_factory=class_row(Waiting)) as cursor:
        backlog = cursor.execute(
            """
            select b.model, b.status, b.tasks, b.is_estimate, b.oldest_at,
                   case when b.status = 'unsolved' then e.seconds_left end as seconds_left
              from llmqueue.backlog b left join llmqueue.eta e on e.model = b.model
             order by b.model, array_position(array['unsolved', 'delayed', 'running', 'failed'], b.status)
            """
        ).fetchall()
    with conn.cursor(row_factory=class_row(Worker)) as cursor:
        workers = cursor.execute(
            """
            select name, version, state, running, heartbeat_age_s, started_at, backend_trouble, backend_troubled_at
              from llmqueue.worker_status order by name, started_at limit 1000
            """
        ).fetchall()
    with conn.cursor(row_factory=class_row(Quarantine)) as cursor:
        quarantine = cursor.execute(
            """
            select (select count(*) from (select from llmqueue.quarantine limit 10000) s) as tasks,
                   newest.task_id::text as example, newest.reason
              from (select) one
              left join (select s.task_id, s.reason from llmqueue.quarantine s
                          order by s.quarantined_at desc limit 1) newest on true
            """
        ).fetchone()
    models = read_models(conn)
    quarantine = quarantine or Quarantine(0, None, None)
    said = list(notes(backlog, models, read_pools(conn), workers, quarantine, _day_ends(conn, models)))
    said += [quiet_minute(because, until) for because, until in conn.execute(QUIET).fetchall()]
    return Snapshot(_database(conn, settings), backlog, models, workers, quarantine, said)


def _day_ends(conn: psycopg.Connection[TupleRow], models: list[ModelStatus]) -> dict[str, datetime]:
    """Returns when the day ends of each model that has used it up."""
    used = [model.model for model in models if used_up(model)]
    if not used:
        return {}
    query = "select s.model, s.day_ends_at from llmqueue.model_status s where s.model = any (%s)"
    return dict(conn.execute(query, [used]).fetchall())


def _database(conn: psycopg.Connection[TupleRow], settings: Settings) -> str:
    from llmqueue.db.connect import place

    if settings.database_url is None:
        return f"embedded PostgreSQL in {settings.home}/postgres"
    return f'"{conn.info.dbname}" {place(settings.database_url.get_secret_value())}'


def _looks(settings: Settings, interval_s: float) -> Iterator[Snapshot]:
    """A snapshot every `interval_s`; while the database is away, one that only says so."""
    conn: psycopg.Connection[TupleRow] | None = None
    while True:
        try:
            conn = conn or open_database("status", settings)
            yield read_snapshot(conn, settings)
        except Exception as error:
            lost = _connection_lost(error, settings)
            if lost is None:
                raise
            conn = None
            yield Snapshot(str(lost), [], [], [], Quarantine(0, None, None), [])
        time.sleep(interval_s)


def _connection_lost(error: Exception, settings: Settings) -> LlmqueueError | None:
    """The error as ours if waiting may help, else None."""
    import psycopg

    from llmqueue.db.connect import classify
    from llmqueue.errors import DatabaseUnreachable

    if isinstance(error, psycopg.Error):
        url = settings.database_url
        error = classify(error, "" if url is None else url.get_secret_value())
    return error if isinstance(error, DatabaseUnreachable) else None
