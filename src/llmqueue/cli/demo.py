"""`llmqueue demo`: everything at work on this machine, judged at the end."""

from __future__ import annotations

import os
import shutil
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from types import FrameType

# What a shell reports for a process that ended by SIGTERM.
_TERMINATED = 128 + signal.SIGTERM


def demo() -> None:
    """Show everything at work on this machine, with real prompts, in a minute and a half.

    A PostgreSQL of its own, an existing table that is adopted, a simulated backend with ten models and two workers;
    one limit is changed half-way. At the end every answer, call and sliding window is checked: exit code 0 when all is
    well, else 1. Nothing of yours is touched, and Ctrl-C leaves nothing running.
    """
    from rich.console import Console

    from llmqueue.demo import run, stage, summary
    from llmqueue.settings import load_settings

    settings = load_settings()
    has_url = settings.database_url is not None
    home = stage.home_in(settings.home)
    console = Console(highlight=False)
    programs = stage.programs()  # before anything is started: without it there is no demo
    psql = "psql" if shutil.which("psql") else str(programs / "psql")
    typer.echo("llmqueue demo: about 80 s, all on this machine. Ctrl-C stops it.")
    if has_url:
        typer.echo("LLMQUEUE_DATABASE_URL is set, but not used: the demo brings its own server.")
    signal.signal(signal.SIGTERM, _terminate)
    try:
        verdict, dsn = run.run(console, home, program())
    except KeyboardInterrupt:
        typer.echo("stopped; nothing of the demo is running any more", err=True)
        raise typer.Exit(130) from None
    summary.show(console, verdict)
    after = summary.Aftermath(program(), psql, home.folder, dsn, verdict.example, has_url)
    for line in ["", *summary.next_lines(after)]:
        typer.echo(line)
    raise typer.Exit(1 if verdict.problems else 0)


def program() -> str:
    """How this program is called from here: `llmqueue` when that is what the shell finds, else its path."""
    own = Path(sys.argv[0])
    found = shutil.which("llmqueue")
    if own.name != "llmqueue" or (found and Path(found).resolve() == own.resolve()):
        return "llmqueue"
    return min(str(own), os.path.relpath(own), key=len)


def _terminate(_signal: int, _frame: FrameType | None) -> None:
    sys.exit(_TERMINATED)
