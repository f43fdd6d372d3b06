"""`llmqueue worker`: the daemon."""

from __future__ import annotations

import gc
import random
import signal
import sys
import time
from typing import Annotated

import anyio
import typer

from llmqueue import logs
from llmqueue.cli.adapter import load_adapter
from llmqueue.db import connect
from llmqueue.db.mapping import Mapping, read_mapping
from llmqueue.db.outage import Outage
from llmqueue.errors import DatabaseUnreachable, SchemaTooNew, UsageError
from llmqueue.settings import load_settings
from llmqueue.spill.file import Database, read_database
from llmqueue.worker.daemon import serve
from llmqueue.worker.options import Report, WorkerOptions

WAIT_S = (0.2, 5.0)
# Objects that came and stayed; Python's own 700 are those of two dozen tasks.
COLLECT_AFTER = 10_000
DRAIN_WAIT_S = 60.0
STOPPED = "stopped before it was drained: tasks may be left that can run"


def worker(
    concurrency: Annotated[
        int | None, typer.Option(min=1, help="Calls in flight in this process; default LLMQUEUE_CONCURRENCY.")
    ] = None,
    model: Annotated[list[str] | None, typer.Option(help="Serve only this model (repeatable).")] = None,
    drain: Annotated[bool, typer.Option("--drain", help="End when nothing can run any more.")] = False,
    drain_wait: Annotated[
        float, typer.Option(min=0, help="With --drain: wait for tasks that are due within these seconds.")
    ] = DRAIN_WAIT_S,
) -> None:
    """Run the daemon that turns tasks into answers.

    Ctrl-C or SIGTERM: claims no more, waits up to LLMQUEUE_DRAIN_S for the calls in flight, gives back what was not
    sent, ends with 0 (1 if a --drain was not done, or if answers wait in the spill file). A second Ctrl-C ends at once.
    """
    if drain_wait != DRAIN_WAIT_S and not drain:
        raise UsageError("--drain-wait goes with --drain.")
    settings = load_settings()
    logs.configure(settings.log_format, settings.log_level)
    dsn = connect.dsn(settings)
    mapping, database, is_pooler = _wait_for_schema(dsn, is_drain=drain)
    listen_dsn = settings.listen_url.get_secret_value() if settings.listen_url else None
    options = WorkerOptions(
        dsn=dsn,
        listen_dsn=listen_dsn,
        is_pooled=is_pooler or listen_dsn is not None,
        backend_url=settings.backend_url,
        slots=concurrency or settings.concurrency,
        models=model or None,
        lease_s=settings.lease_s,
        drain_s=settings.drain_s,
        guard_s=settings.guard_s,
        keep_attempts=settings.keep_attempts,
        drain_wait_s=drain_wait if drain else None,
        home=settings.home,
        database=database,
    )

    async def run() -> Report:
        return await serve(options, mapping, load_adapter(settings))

    _collect_rarely()
    report = anyio.run(run)
    if drain:
        typer.echo(last_line(report))
    if report.unsettled:
        typer.echo(unsettled_line(report))
    if report.is_outgrown:
        raise SchemaTooNew(
            "a newer llmqueue has upgraded the schema under this worker: install the new release here too."
        )
    if report.unsettled or (drain and report.stranded != []):
        raise typer.Exit(1)


def _collect_rarely() -> None:
    """Spares the garbage collector what has been loaded, and most of its rounds: a task leaves nothing for it behind.

    It took a twentieth of this process's time, and stopped the loop while it went through thousands of calls.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(COLLECT_AFTER, *gc.get_threshold()[1:])


def _wait_for_schema(dsn: str, *, is_drain: bool) -> tuple[Mapping, Database, bool]:
    """Waits for a database that is away or starting (I10); a wrong password or a missing schema ends the worker.

    Returns whether it is reached through a pooler, too.
    """
    outage = Outage()
    pause_s = WAIT_S[0]
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: sys.exit(STOPPED if is_drain else 0))  # nothing runs yet
    while True:
        try:
            with connect.connect(dsn, application_name="llmqueue worker") as connection:
                connect.require_schema(connection)
                mapping, database = read_mapping(connection), read_database(connection)
            is_pooler = connect.is_pooler(dsn)
        except DatabaseUnreachable as error:
            outage.began(error)
            time.sleep(random.uniform(pause_s / 2, pause_s))
            pause_s = min(2 * pause_s, WAIT_S[1])
        else:
            outage.ended()
            return mapping, database, is_pooler


def last_line(report: Report) -> str:
    """Returns what `--drain` says at its end."""
    if report.stranded is None:
        return STOPPED
    if not report.stranded:
        return "drained: nothing is left that can run"
    parts = []
    for row in report.stranded:
        lane = f" (lane {row.lane})" if row.lane else ""
        examples = ", ".join(row.examples or [])
        more = ", …" if (row.tasks or 0) > len(row.examples or []) else ""
        parts.append(f"{row.tasks} {row.reason}{lane}: {examples}{more}")
    return "drained, but these tasks cannot run: " + "; ".join(parts)


def unsettled_line(report: Report) -> str:
    """Returns what is said of ends that the database does not have."""
    lines = []
    if report.spilled:
        lines.append(
            f"{report.spilled} finished calls could not be written to the database and wait in {report.spill}: "
            "the next worker with this LLMQUEUE_HOME settles them. Start it within the lease after the database is "
            "back, or they are called again"
        )
    if lost := report.unsettled - report.spilled:
        lines.append(
            f"{lost} finished calls could be written neither to the database nor to {report.spill}: "
            "their tasks run again"
        )
    return "\n".join(lines)
