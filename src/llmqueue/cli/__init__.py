"""The command line: one file per verb, imported when it is called, so that `llmqueue --help` is quick.

A verb's file has either a function of the verb's name or, for a verb with verbs of its own (`models set`), a
`typer.Typer()` of that name. Errors meant for people are LlmqueueErrors; `main()` prints them without a traceback.
"""

from __future__ import annotations

import importlib
import os
import sys
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from llmqueue import __version__
from llmqueue.errors import Failure, LlmqueueError

# Verb and the line that `llmqueue --help` shows for it.
VERBS = {
    "init": "Install or upgrade the schema; create or adopt the tasks table.",
    "worker": "Run the daemon that turns tasks into answers.",
    "add": "Insert tasks from a JSONL or CSV file or from stdin.",
    "models": "List models and pools, set their limits, pause and resume them.",
    "status": "Show backlog, rates against limits, workers and the time left.",
    "why": "Say what a task is waiting for, and until when.",
    "tasks": "Show, retry or cancel tasks.",
    "dead": "List, retry or purge dead letters.",
    "audit": "Recompute the worst sliding window of each model; fail on a violation.",
    "doctor": "Check database, schema, backend and settings; name each remedy.",
    "backend": "Run the simulated Models Backend, for demo, tests and sizing.",
    "simulate": "Say when a backlog is done under given limits, without a single call.",
    "demo": "Show everything at work on this machine, with real prompts.",
}


class LazyGroup(TyperGroup):
    """Lists the verbs by their one line each, and imports a verb's module when that verb is called."""

    # Any: older Typers speak of click's types, newer ones of a copy of their own without a public name.
    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        name, command, rest = super().resolve_command(ctx, args)
        return name, load_verb(name) if name in VERBS else command, rest


def load_verb(verb: str) -> Any:
    """Imports the module of a verb and returns its command."""
    verb_of_module = getattr(importlib.import_module(f"llmqueue.cli.{verb}"), verb)
    if not isinstance(verb_of_module, typer.Typer):
        single = typer.Typer(add_completion=False, rich_markup_mode=None)
        single.command(verb)(verb_of_module)
        verb_of_module = single
    command = typer.main.get_command(verb_of_module)
    command.name = verb
    return command


app = typer.Typer(
    cls=LazyGroup,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"llmqueue {__version__}")
        raise typer.Exit


@app.callback()
def llmqueue(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Turn rows of a Postgres table into answered rows, as fast as the models' quotas allow and never faster.

    Settings are environment variables that begin with LLMQUEUE_, or lines of a file .env. Exit codes: 0 done,
    1 failed or a check found a problem, 2 wrong usage or configuration.
    """


def _register(verb: str, line: str) -> None:
    @app.command(verb, help=line)
    def placeholder() -> None:
        """Never called: LazyGroup puts the verb's own command in its place."""


for _verb, _line in VERBS.items():
    _register(_verb, _line)


def main() -> None:
    """Runs the command line and exits the process."""
    try:
        app(prog_name="llmqueue")
    except LlmqueueError as error:
        _exit_with(error)
    except KeyboardInterrupt:
        typer.echo("llmqueue: interrupted", err=True)
        sys.exit(130)
    except BrokenPipeError:
        # The reader (`| head`) has left. Python would complain once more when it flushes stdout at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except OSError as error:
        _exit_with(Failure(f"the operating system says: {error}"))
    except Exception as error:
        if (ours := _database_error(error)) is None:
            raise
        _exit_with(ours)


def _exit_with(error: LlmqueueError) -> None:
    for line in str(error).splitlines():
        typer.echo(f"llmqueue: {line}", err=True)
    sys.exit(error.exit_code)


def _database_error(error: Exception) -> LlmqueueError | None:
    """An error of the driver that no command has expected, as one line; None for any other error."""
    psycopg = sys.modules.get("psycopg")  # not imported: then the error is not its
    if psycopg is None or not isinstance(error, psycopg.Error):
        return None
    from llmqueue.db.connect import classify
    from llmqueue.settings import load_settings

    url = load_settings().database_url
    return classify(error, "" if url is None else url.get_secret_value())
