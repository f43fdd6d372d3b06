"""`llmqueue init`: installs or upgrades the schema, and creates the tasks table or adopts the existing one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from rich.console import Console

    from llmqueue.install.indexes import Progress
    from llmqueue.install.spec import AdoptionSpec


def init(
    table: Annotated[
        str | None,
        typer.Option(help="The table to adopt, as TABLE or SCHEMA.TABLE. Default: public.tasks, made if absent."),
    ] = None,
    id_column: Annotated[str | None, typer.Option(help="Its key: unique and not null. Default: id.")] = None,
    prompt_column: Annotated[str | None, typer.Option(help="Default: prompt.")] = None,
    answer_column: Annotated[str | None, typer.Option(help="Default: answer.")] = None,
    status_column: Annotated[str | None, typer.Option(help="Default: status.")] = None,
    queued_value: Annotated[
        str | None, typer.Option(help="The status of a task that waits. Default: unsolved.")
    ] = None,
    done_value: Annotated[str | None, typer.Option(help="The status of an answered task. Default: solved.")] = None,
    column: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=COLUMN", help="Keep NAME of ours in COLUMN, which is used if it is there. Repeatable."
        ),
    ] = None,
    word: Annotated[
        list[str] | None,
        typer.Option(metavar="STATUS=VALUE", help="Write VALUE for a status of ours: running=in_progress. Repeatable."),
    ] = None,
    own_status: Annotated[
        bool,
        typer.Option(
            "--own-status", help="Leave their status alone but for the done value; keep ours in a column of its own."
        ),
    ] = False,
    roles: Annotated[
        bool,
        typer.Option(
            "--roles",
            help="Create the roles llmqueue_worker, llmqueue_producer, llmqueue_operator and llmqueue_reader where they"
            " are missing, and grant each what it needs in this database.",
        ),
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the plan as SQL for psql, and change nothing.")
    ] = False,
    lock_wait: Annotated[
        float, typer.Option(metavar="SECONDS", help="How long to try for a moment without a long transaction.")
    ] = 600.0,
) -> None:
    """Install or upgrade the schema; create the tasks table, or adopt the existing one while it is in use.

    Statements of others never wait long: each lock is asked for briefly, again and again. Can be interrupted, and
    goes on when it is run again.
    """
    from llmqueue.install.spec import AdoptionSpec, parse_pairs

    spec = AdoptionSpec(
        table=table,
        id_column=id_column,
        prompt_column=prompt_column,
        answer_column=answer_column,
        status_column=status_column,
        queued_value=queued_value,
        done_value=done_value,
        columns=parse_pairs("--column", column or (), "NAME=COLUMN"),
        words=parse_pairs("--word", word or (), "STATUS=VALUE"),
        own_status=own_status,
        with_roles=roles,
        lock_wait_s=lock_wait,
    )
    _run(spec, dry_run)


def _run(spec: AdoptionSpec, dry_run: bool) -> None:
    from rich.console import Console

    from llmqueue.db import connect
    from llmqueue.install import adopt
    from llmqueue.settings import load_settings

    settings = load_settings()
    # The direct connection: a lock and settings that last for the session do not go through a pooler.
    dsn = connect.listen_dsn(settings, connect.dsn(settings))
    if dry_run:
        typer.echo(adopt.plan(dsn, spec).script(), nl=False)
        return
    console = Console(highlight=False, soft_wrap=True)
    with _progress(console) as progress:
        adopt.install(dsn, spec, report=lambda line: console.print(line, markup=False), progress=progress)


@contextmanager
def _progress(console: Console) -> Iterator[Progress | None]:
    """Show a long index build as a bar on a terminal; piped, `install` writes a line now and then."""
    if not console.is_terminal:
        yield None
        return
    from rich import progress as bars

    with bars.Progress(
        bars.TextColumn("{task.description}"),
        bars.BarColumn(),
        bars.TimeElapsedColumn(),
        console=console,
        transient=True,
    ) as bar:
        task = bar.add_task("", total=None, visible=False)

        def show(line: str, fraction: float | None) -> None:
            bar.update(
                task,
                description=line,
                total=None if fraction is None else 1.0,
                completed=fraction or 0.0,
                visible=bool(line),
            )

        yield show
