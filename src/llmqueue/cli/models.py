"""`llmqueue models`: the rows of llmqueue.model_config. An UPDATE by plain SQL does the same."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from decimal import Decimal
from typing import TYPE_CHECKING, Annotated

import typer

from llmqueue.cli.database import open_database
from llmqueue.cli.output import Column, duration, readable, show
from llmqueue.errors import Failure, UsageError

if TYPE_CHECKING:
    import psycopg
    from psycopg.rows import TupleRow

models = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    help="List models, set their limits, pause and resume them.",
)

LARGEST_INTEGER = 2**31 - 1

SET = """
    update llmqueue.model_config c
       set rpm = coalesce(%(rpm)s, c.rpm),
           max_concurrency = case when %(no_max_concurrency)s then null
                                  else coalesce(%(max_concurrency)s, c.max_concurrency) end,
           timeout = coalesce(make_interval(secs => %(timeout)s), c.timeout),
           enabled = coalesce(%(enabled)s, c.enabled)
     where c.model = %(model)s
"""
CREATE = """
    insert into llmqueue.model_config (model, rpm, max_concurrency, enabled, timeout)
    values (%(model)s, %(rpm)s, %(max_concurrency)s, coalesce(%(enabled)s, true),
            coalesce(make_interval(secs => %(timeout)s), interval '10 minutes'))
    on conflict (model) do nothing
"""

Name = Annotated[str, typer.Argument(metavar="NAME", help="The model.")]


@dataclass(frozen=True, slots=True)
class ModelStatus:
    """A row of llmqueue.model_status."""

    model: str
    enabled: bool
    rpm: int
    max_concurrency: int | None
    timeout: timedelta
    calls_60s: int
    use_pct: Decimal | None
    running: int
    ready: int
    ready_is_estimate: bool
    oldest_ready_at: datetime | None


COLUMNS = (
    Column("model", "model"),
    Column("enabled", "enabled"),
    Column("rpm", "rpm", is_right=True),
    Column("calls_60s", "calls in 60 s", is_right=True),
    Column("use_pct", "% used", is_right=True),
    Column("running", "running", is_right=True),
    Column("max_concurrency", "max. running", lambda n: "no limit" if n is None else readable(n), is_right=True),
    Column("timeout", "timeout", readable, is_right=True),
)


def read_models(conn: psycopg.Connection[TupleRow]) -> list[ModelStatus]:
    """Every configured model, by name."""
    from psycopg.rows import class_row

    with conn.cursor(row_factory=class_row(ModelStatus)) as cursor:
        return cursor.execute(
            """
            select model, enabled, rpm, max_concurrency, timeout, calls_60s, use_pct, running, ready, ready_is_estimate,
                   oldest_ready_at
              from llmqueue.model_status order by model
            """
        ).fetchall()


@models.command("list")
def list_models(
    as_json: Annotated[bool, typer.Option("--json", help="Write JSON.")] = False,
) -> None:
    """List the models with their limits and what they used in the last 60 s."""
    with open_database("models list") as conn:
        rows = read_models(conn)
    show(rows, COLUMNS, as_json=as_json, none="no models yet. Add one: llmqueue models set NAME --rpm N")


@models.command("set")
def set_model(
    name: Name,
    rpm: Annotated[
        int | None,
        typer.Option(min=0, max=LARGEST_INTEGER, help="Calls per sliding 60 s over all workers; 0 pauses it."),
    ] = None,
    max_concurrency: Annotated[
        str | None, typer.Option(metavar="N|none", help="Calls in flight over all workers; none: no limit.")
    ] = None,
    timeout: Annotated[
        float | None, typer.Option(metavar="SECONDS", help="The longest that one attempt may take [new: 600].")
    ] = None,
    enabled: Annotated[
        bool | None, typer.Option("--enabled/--disabled", help="Whether tasks are sent to it [new: enabled].")
    ] = None,
) -> None:
    """Set limits of a model, and create it if it is not there; holds from the next grant."""
    if not name.strip():
        raise UsageError("NAME must not be empty")
    if timeout is not None and not 0 < timeout <= 31_536_000:
        raise UsageError(f"--timeout must be a number of seconds above 0 and at most a year (got {timeout})")
    values = {
        "model": name,
        "rpm": rpm,
        "max_concurrency": _max_concurrency(max_concurrency),
        "no_max_concurrency": max_concurrency == "none",
        "timeout": timeout,
        "enabled": enabled,
    }
    if rpm is None and max_concurrency is None and timeout is None and enabled is None:
        raise UsageError("nothing to set: give --rpm, --max-concurrency, --timeout, --enabled or --disabled")
    with open_database("models set") as conn:
        if conn.execute(SET, values).rowcount == 0:
            if rpm is None:
                raise UsageError(f'model "{name}" is not configured yet: give its limit, --rpm N')
            # Somebody else may have created it just now: then theirs is updated.
            if conn.execute(CREATE, values).rowcount == 0:
                conn.execute(SET, values)
        now = next(model for model in read_models(conn) if model.model == name)
    limit = "no limit on" if now.max_concurrency is None else f"at most {now.max_concurrency:,}"
    state = "" if now.enabled else ", paused"
    typer.echo(
        f"{name}: {now.rpm:,} calls per minute, {limit} calls in flight, "
        f"timeout {duration(now.timeout.total_seconds())}{state}"
    )


@models.command()
def pause(name: Name) -> None:
    """Send nothing more to a model; calls in flight go on."""
    _set_enabled(name, enabled=False)
    typer.echo(f"{name} is paused. Resume it: llmqueue models resume {name}")


@models.command()
def resume(name: Name) -> None:
    """Send tasks to a paused model again."""
    _set_enabled(name, enabled=True)
    typer.echo(f"{name} is enabled")


def _set_enabled(name: str, *, enabled: bool) -> None:
    with open_database("models") as conn:
        if conn.execute("update llmqueue.model_config set enabled = %s where model = %s", [enabled, name]).rowcount:
            return
        known = [row[0] for row in conn.execute("select model from llmqueue.model_config order by model limit 100")]
    names = f"Configured: {', '.join(known)}" if known else "None is configured: llmqueue models set NAME --rpm N"
    raise Failure(f'there is no model "{name}". {names}')


def _max_concurrency(text: str | None) -> int | None:
    if text is None or text == "none":
        return None
    if not text.isdecimal() or int(text) > LARGEST_INTEGER:
        raise UsageError(f"--max-concurrency must be a whole number of at least 0, or none (got '{text}')")
    return int(text)
