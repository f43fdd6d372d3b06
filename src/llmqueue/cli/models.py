"""`llmqueue models`: the rows of llmqueue.model_config and llmqueue.pool_member. Plain SQL does the same."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from llmqueue.cli.database import open_database
from llmqueue.cli.limits import LARGEST_INTEGER, Dispatch, OnCrash, TokenMode, read_columns, refused
from llmqueue.cli.model_status import LINE_END, cooldown_ends, doubts, read_models, summary
from llmqueue.cli.output import Column, clean, console, readable, show
from llmqueue.cli.pools import MEMBERS, drop_pool, names_of_pools, read_members, read_pools, set_pool
from llmqueue.errors import Failure, UsageError

if TYPE_CHECKING:
    from collections.abc import Mapping

    import psycopg
    from psycopg.rows import TupleRow

models = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    help="List models and pools, set their limits, pause and resume them.",
)

CREATE = "insert into llmqueue.model_config (model, rpm) values (%(model)s, %(rpm)s) on conflict (model) do nothing"
# What is not in `columns` stays as it is.
SET = """
    update llmqueue.model_config c
       set (rpm, max_concurrency, enabled, timeout, tpm, output_tpm, token_mode, max_output, rpd, tpd, quota_timezone,
            burst_windows, weight, hot_share, on_crash, dispatch, max_batch)
         = (select n.rpm, n.max_concurrency, n.enabled, n.timeout, n.tpm, n.output_tpm, n.token_mode, n.max_output,
                   n.rpd, n.tpd, n.quota_timezone, n.burst_windows, n.weight, n.hot_share,
                   n.on_crash, n.dispatch, n.max_batch
              from jsonb_populate_record(c, %(columns)s) n)
     where c.model = %(model)s
"""

Name = Annotated[str, typer.Argument(metavar="NAME", help="The model.")]
AsJson = Annotated[bool, typer.Option("--json", help="Write JSON.")]

COLUMNS = (
    Column("model", "model"),
    Column("enabled", "enabled"),
    Column("rpm", "rpm", is_right=True),
    Column("lowered_rpm", "rpm now", is_right=True, is_optional=True),
    Column("calls_60s", "calls in 60 s", is_right=True),
    Column("use_pct", "% used", is_right=True),
    Column("tokens_of_tpm", "tokens in 60 s", is_right=True, is_optional=True),
    Column("output_of_tpm", "output in 60 s", is_right=True, is_optional=True),
    Column("calls_of_rpd", "calls today", is_right=True, is_optional=True),
    Column("tokens_of_tpd", "tokens today", is_right=True, is_optional=True),
    Column("running", "running", is_right=True),
    Column("max_concurrency", "max. running", lambda n: "no limit" if n is None else readable(n), is_right=True),
    Column("lowered_concurrency", "max. now", is_right=True, is_optional=True),
    Column("timeout", "timeout", readable, is_right=True),
    Column("weight", "weight", lambda weight: f"{weight:g}", is_right=True),
    Column("parks", "on crash", is_optional=True),
    Column("sends", "dispatch", is_optional=True),
    Column("cooldown_until", "cooldown ends", cooldown_ends, is_optional=True),
)
# Fields of a line for a program, in an order that stays.
LINE = (
    *("model", "enabled", "rpm", "calls_60s", "use_pct", "running", "max_concurrency", "timeout", "weight"),
    *LINE_END,
)


@models.command("list")
def list_models(as_json: AsJson = False) -> None:
    """List the models with their limits, what is in force now, and what they used in the last 60 s."""
    with open_database("models list") as conn:
        rows = read_models(conn)
    none = "no models yet. Add one: llmqueue models set NAME --rpm N"
    show(rows, COLUMNS, as_json=as_json, none=none, line=LINE)
    if not as_json and console().is_terminal:
        for cooldown in filter(None, (model.cooldown for model in rows)):
            typer.echo(clean(cooldown))


@models.command("set")
def set_model(
    name: Name,
    rpm: Annotated[
        int | None,
        typer.Option(min=0, max=LARGEST_INTEGER, help="Calls per sliding 60 s over all workers; 0 pauses it."),
    ] = None,
    tpm: Annotated[
        str | None,
        typer.Option(metavar="N|none", help="Tokens charged per sliding 60 s; 0 pauses it, none: no limit."),
    ] = None,
    output_tpm: Annotated[
        str | None,
        typer.Option(metavar="N|none", help="With --token-mode split: output tokens per sliding 60 s."),
    ] = None,
    token_mode: Annotated[
        TokenMode | None,
        typer.Option(
            help="What counts against tpm: input, sum (input + max_output), max (the larger), split (input, output by "
            "itself), actual (what was used) [new: sum]."
        ),
    ] = None,
    max_output: Annotated[
        str | None,
        typer.Option(metavar="N|none", help="Output tokens of a call whose params name no maximum, as charged."),
    ] = None,
    max_concurrency: Annotated[
        str | None, typer.Option(metavar="N|none", help="Calls in flight over all workers; none: no limit.")
    ] = None,
    rpd: Annotated[str | None, typer.Option(metavar="N|none", help="Calls per day; none: no limit.")] = None,
    tpd: Annotated[str | None, typer.Option(metavar="N|none", help="Tokens charged per day; none: no limit.")] = None,
    quota_timezone: Annotated[
        str | None, typer.Option(metavar="ZONE", help="Where the day begins at midnight [new: UTC].")
    ] = None,
    burst_window: Annotated[
        list[str] | None,
        typer.Option(
            metavar="SECONDS=SHARE|none",
            help="A shorter window: 10=1/6 is at most a sixth of rpm in any 10 s. Repeatable; together they replace "
            "those set before.",
        ),
    ] = None,
    weight: Annotated[
        float | None, typer.Option(metavar="W", help="Share of the default pool; 0 keeps it out [new: 1].")
    ] = None,
    hot_share: Annotated[
        float | None,
        typer.Option(metavar="S", help="Part of calls and slots kept for tasks of priority 100 and more [new: 0.1]."),
    ] = None,
    timeout: Annotated[
        float | None, typer.Option(metavar="SECONDS", help="The longest that one attempt may take [new: 600].")
    ] = None,
    on_crash: Annotated[
        OnCrash | None,
        typer.Option(
            help="What becomes of a call that may have been sent when its worker dies: retry, or park (a dead letter, "
            "outcome_unknown) [new: retry]."
        ),
    ] = None,
    dispatch: Annotated[
        Dispatch | None,
        typer.Option(
            help="How its tasks are sent: single (a call each), batch (several in one call), auto (batches while a "
            "worker has no time for single calls) [new: auto]."
        ),
    ] = None,
    max_batch: Annotated[
        int | None, typer.Option(min=1, max=1000, help="The most tasks in one call [new: 20].")
    ] = None,
    enabled: Annotated[
        bool | None, typer.Option("--enabled/--disabled", help="Whether tasks are sent to it [new: enabled].")
    ] = None,
) -> None:
    """Set limits of a model, and create it if it is not there; holds from the next grant."""
    if not name.strip():
        raise UsageError("NAME must not be empty")
    counts = {"max_concurrency": max_concurrency, "tpm": tpm, "output_tpm": output_tpm, "max_output": max_output}
    counts |= {"rpd": rpd, "tpd": tpd}
    columns = read_columns({"weight": weight, "hot_share": hot_share, "timeout": timeout}, counts, burst_window)
    plain = {"rpm": rpm, "token_mode": token_mode, "quota_timezone": quota_timezone, "enabled": enabled}
    plain |= {"on_crash": on_crash, "dispatch": dispatch, "max_batch": max_batch}
    columns |= {column: value for column, value in plain.items() if value is not None}
    if not columns:
        raise UsageError("nothing to set: give a limit, such as --rpm N (llmqueue models set --help names them all)")
    with open_database("models set") as conn:
        _write(conn, name, columns)
        now = next(model for model in read_models(conn) if model.model == name)
        pools = names_of_pools(conn)
    typer.echo(summary(now))
    for doubt in doubts(now, is_pool=name in pools):
        typer.echo(f"llmqueue: warning: {doubt}", err=True)


def _write(conn: psycopg.Connection[TupleRow], name: str, columns: Mapping[str, object]) -> None:
    import psycopg
    from psycopg.types.json import Jsonb

    values = {"model": name, "rpm": columns.get("rpm"), "columns": Jsonb(columns)}
    try:
        with conn.transaction():
            if conn.execute(SET, values).rowcount:
                return
            if "rpm" not in columns:
                raise UsageError(f'model "{name}" is not configured yet: give its limit, --rpm N')
            # Somebody else may have created it just now: then theirs is changed.
            conn.execute(CREATE, values)
            conn.execute(SET, values)
    except (psycopg.IntegrityError, psycopg.DataError) as error:
        raise refused(error, columns) from None


@models.command()
def pause(name: Name) -> None:
    """Send nothing more to a model; calls in flight go on."""
    with open_database("models pause") as conn:
        _set_enabled(conn, name, enabled=False)
    typer.echo(f"{name} is paused. Resume it: llmqueue models resume {name}")


@models.command()
def resume(name: Name) -> None:
    """Send tasks to a paused model again; a cooldown after refusals ends at once."""
    with open_database("models resume") as conn, conn.transaction():
        _set_enabled(conn, name, enabled=True)
        was_closed = conn.execute("select llmqueue.end_cooldown(%s)", [name]).fetchone() == (True,)
    typer.echo(f"{name} is enabled{', and open again' if was_closed else ''}")


@models.command()
def pools(as_json: AsJson = False) -> None:
    """List the named pools: which models take the tasks of each, and by what weight."""
    with open_database("models pools") as conn:
        rows = read_pools(conn)
    show(rows, MEMBERS, as_json=as_json, none="no pools yet. Add one: llmqueue models pool NAME MODEL=WEIGHT …")


@models.command()
def pool(
    name: Annotated[str, typer.Argument(metavar="NAME", help="The pool.")],
    members: Annotated[
        list[str] | None,
        typer.Argument(metavar="MODEL=WEIGHT...", help="All its models; a model without a weight has weight 1."),
    ] = None,
    drop: Annotated[bool, typer.Option("--drop", help="Remove the pool.")] = False,
) -> None:
    """Set the models of a pool, in place of those it had; a task whose model is the pool's name goes to any of them."""
    if not name.strip():
        raise UsageError("NAME must not be empty")
    if drop == bool(members):
        raise UsageError("give the pool's models, MODEL=WEIGHT …, or --drop to remove it")
    weights = read_members(members or [])
    with open_database("models pool") as conn:
        known = {model.model for model in read_models(conn)}
        if drop:
            drop_pool(conn, name)
        elif unknown := next((model for model in weights if model not in known), None):
            raise _unknown(conn, unknown)
        else:
            set_pool(conn, name, weights)
    if drop:
        typer.echo(f"pool {name} is gone. Tasks that name it wait until there is a pool or a model of that name")
        return
    typer.echo(f"{name}: {', '.join(f'{model} {weight:g}' for model, weight in weights.items())}")
    if name in known:
        typer.echo(f'llmqueue: warning: "{name}" is also a model: its own tasks go to the pool\'s models too', err=True)


def _set_enabled(conn: psycopg.Connection[TupleRow], name: str, *, enabled: bool) -> None:
    if not conn.execute("update llmqueue.model_config set enabled = %s where model = %s", [enabled, name]).rowcount:
        raise _unknown(conn, name)


def _unknown(conn: psycopg.Connection[TupleRow], name: str) -> Failure:
    known = [row[0] for row in conn.execute("select model from llmqueue.model_config order by model limit 100")]
    names = f"Configured: {', '.join(known)}" if known else "None is configured: llmqueue models set NAME --rpm N"
    return Failure(f'there is no model "{name}". {names}')
