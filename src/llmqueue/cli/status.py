"""`llmqueue status`: what waits, what runs, how much of the limits is used, who works, and how long it will take."""

from __future__ import annotations

import time
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import datetime
from decimal import Decimal
from typing import TYPE_CHECKING, Annotated

import typer

from llmqueue.cli.database import open_database
from llmqueue.cli.model_status import LINE_END, ModelStatus, opens, read_models
from llmqueue.cli.notes import notes, quiet_minute, used_up
from llmqueue.cli.output import Column, age, clean, console, duration, readable, table, write_json, write_line
from llmqueue.cli.pools import read_pools
from llmqueue.errors import LlmqueueError

if TYPE_CHECKING:
    from collections.abc import Iterator

    import psycopg
    from psycopg.rows import TupleRow
    from rich.console import RenderableType

    from llmqueue.settings import Settings


@dataclass(frozen=True, slots=True)
class Waiting:
    """A row of llmqueue.backlog, with the time left from llmqueue.eta; model '' is the default pool."""

    model: str
    status: str
    tasks: int
    is_estimate: bool
    oldest_at: datetime | None
    seconds_left: int | None

    @property
    def count(self) -> str:
        return f"about {self.tasks:,}" if self.is_estimate else f"{self.tasks:,}"


@dataclass(frozen=True, slots=True)
class Worker:
    """A row of llmqueue.worker_status."""

    name: str
    version: str
    state: str
    running: int
    heartbeat_age_s: Decimal
    started_at: datetime
    backend_trouble: str | None = None
    backend_troubled_at: datetime | None = None


@dataclass(frozen=True, slots=True)
class SetAside:
    """Tasks whose row could not be written, counted up to 10,000, and the newest reason."""

    tasks: int
    example: str | None
    reason: str | None


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Everything that `status` shows, read at about the same time."""

    database: str
    backlog: list[Waiting]
    models: list[ModelStatus]
    workers: list[Worker]
    set_aside: SetAside
    notes: list[str]


BACKLOG = (
    Column("model", "model", lambda name: str(name) or "(any)"),
    Column("status", "status"),
    Column("count", "tasks", is_right=True),
    Column("oldest_at", "oldest", age, is_right=True),
    Column("seconds_left", "time left", duration, is_right=True),
)
MODELS = (
    Column("model", "model"),
    Column("calls_60s", "calls in 60 s", is_right=True),
    Column("rpm", "limit", is_right=True),
    Column("lowered_rpm", "now", is_right=True, is_optional=True),
    Column("use_pct", "% used", is_right=True),
    Column("tokens_of_tpm", "tokens in 60 s", is_right=True, is_optional=True),
    Column("output_of_tpm", "output in 60 s", is_right=True, is_optional=True),
    Column("calls_of_rpd", "calls today", is_right=True, is_optional=True),
    Column("tokens_of_tpd", "tokens today", is_right=True, is_optional=True),
    Column("running", "running", is_right=True),
    Column("max_concurrency", "max.", is_right=True),
    Column("lowered_concurrency", "now", is_right=True, is_optional=True),
    Column("enabled", "enabled"),
    Column("closed_until", "opens", opens, is_optional=True),
)
# Fields of a line for a program, in an order that stays.
MODEL_LINE = (
    *("model", "calls_60s", "rpm", "use_pct", "running", "max_concurrency", "enabled"),
    *LINE_END,
)
WORKERS = (
    Column("name", "worker"),
    Column("state", "state"),
    Column("running", "running", is_right=True),
    Column("heartbeat_age_s", "heartbeat", lambda s: f"{s} s ago", is_right=True),
    Column("started_at", "started", age, is_right=True),
    Column("version", "version"),
)


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
            _write(read_snapshot(conn, settings), as_json=as_json)
        return
    with suppress(KeyboardInterrupt):  # the usual way to end it, not a failure
        _watch(settings, interval, as_json=as_json)


def _watch(settings: Settings, interval: float, *, as_json: bool) -> None:
    screen = console()
    if screen.is_terminal and not as_json:
        from rich.live import Live

        with Live(console=screen, screen=False, auto_refresh=False, vertical_overflow="visible") as live:
            for look in _looks(settings, interval):
                live.update(_page(look), refresh=True)
    else:
        for look in _looks(settings, interval):
            _write(look, as_json=as_json)


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
    with conn.cursor(row_factory=class_row(SetAside)) as cursor:
        set_aside = cursor.execute(
            """
            select (select count(*) from (select from llmqueue.set_aside limit 10000) s) as tasks,
                   newest.task_id::text as example, newest.reason
              from (select) one
              left join (select s.task_id, s.reason from llmqueue.set_aside s
                          order by s.set_aside_at desc limit 1) newest on true
            """
        ).fetchone()
    models = read_models(conn)
    set_aside = set_aside or SetAside(0, None, None)
    said = list(notes(backlog, models, read_pools(conn), workers, set_aside, _day_ends(conn, models)))
    said += [quiet_minute(because, until) for because, until in conn.execute(QUIET).fetchall()]
    return Snapshot(_database(conn, settings), backlog, models, workers, set_aside, said)


def _day_ends(conn: psycopg.Connection[TupleRow], models: list[ModelStatus]) -> dict[str, datetime]:
    """When the day of each model that has used it up ends: 36 hours after it began it is the next day."""
    used = [model for model in models if used_up(model)]
    if not used:
        return {}
    rows = conn.execute(
        """
        select u.model, llmqueue.day_start(u.timezone, llmqueue.day_start(u.timezone) + interval '36 hours')
          from unnest(%s::text[], %s::text[]) u(model, timezone)
        """,
        [[model.model for model in used], [model.quota_timezone for model in used]],
    ).fetchall()
    return dict(rows)


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
            yield Snapshot(str(lost), [], [], [], SetAside(0, None, None), [])
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


def _write(snapshot: Snapshot, *, as_json: bool) -> None:
    screen = console()
    if as_json:
        write_json(asdict(snapshot))
    elif screen.is_terminal:
        screen.print(_page(snapshot))
    else:
        _write_lines(snapshot)


def _write_lines(snapshot: Snapshot) -> None:
    write_line("database", snapshot.database)
    for b in snapshot.backlog:
        write_line("backlog", b.model or "(any)", b.status, b.tasks, b.is_estimate, b.oldest_at, b.seconds_left)
    for m in snapshot.models:
        write_line("model", *(getattr(m, field) for field in MODEL_LINE))
    for w in snapshot.workers:
        write_line("worker", w.name, w.state, w.running, w.heartbeat_age_s, w.started_at, w.version)
    for note in snapshot.notes:
        write_line("note", note)


def _page(snapshot: Snapshot) -> RenderableType:
    from rich.console import Group
    from rich.text import Text

    parts: list[RenderableType] = [Text(f"database: {clean(snapshot.database)}")]
    if snapshot.backlog:
        parts.append(table(snapshot.backlog, BACKLOG, "Backlog"))
    else:
        parts.append(Text("nothing waits"))
    if snapshot.models:
        parts.append(table(snapshot.models, MODELS, "Models"))
    if snapshot.workers:
        parts.append(table(snapshot.workers, WORKERS, "Workers"))
    parts += [Text(f"! {clean(note)}", style="yellow") for note in snapshot.notes]
    left = [row.seconds_left for row in snapshot.backlog if row.seconds_left is not None]
    if left:
        parts.append(Text(f"time left at the limits: at least {readable(duration(max(left)))}"))
    return Group(*parts)
