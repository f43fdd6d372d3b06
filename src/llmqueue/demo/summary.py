"""What the demo says at its end: the figures, whether all is well, and what to type next."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from typing import TYPE_CHECKING

from psycopg.conninfo import conninfo_to_dict
from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from rich.console import Console

    from llmqueue.demo.verdict import Limit, Verdict


@dataclass(frozen=True, slots=True)
class Aftermath:
    """The values for the commands at the end: how to call llmqueue and psql, the server, and an example task."""

    program: str
    psql: str
    home: Path
    dsn: str
    task: str
    has_url: bool


def show(console: Console, verdict: Verdict) -> None:
    """Prints the figures of a run, then its problems if there are any."""

    def say(line: str, style: str = "") -> None:
        console.print(Text(line, style=style), soft_wrap=True)

    say("")
    for line in tasks_lines(verdict):
        say(line)
    console.print(_table(verdict.limits))
    say(
        "quota used: in the windows of 60 s that ended while tasks waited. After a limit\n"
        "is lowered, old calls leave the window faster than new ones may enter it."
    )
    for line in time_lines(verdict):
        say(line)
    say("")
    if verdict.problems:
        say("Not all is well:", style="bold red")
        for problem in verdict.problems:
            say(f"  - {problem}")
    else:
        say("All is well: no call over a limit, none refused, none twice, all answers right.", style="green")


def tasks_lines(verdict: Verdict) -> list[str]:
    """Returns the lines about tasks and calls."""
    answers, calls = verdict.answers, verdict.calls
    return [
        (
            f"{answers.solved:,} of {answers.tasks:,} tasks solved, {answers.failed:,} failed; "
            f"{answers.right:,} answers are right."
        ),
        f"The backend saw {calls.total:,} calls: {calls.once:,} tasks exactly once; {calls.refused:,} refused (429).",
    ]


def time_lines(verdict: Verdict) -> list[str]:
    """Returns the lines that compare the duration with the least time that the quotas allow."""
    times = verdict.times
    return [
        f"All calls were sent within {times.last_sent_s:.1f} s and answered within {times.last_answered_s:.1f} s.",
        f"The quotas allow {times.even_s:.1f} s at an even pace; {times.least_s:.1f} s if each is spent in one burst.",
    ]


def next_lines(after: Aftermath) -> list[str]:
    """Returns the next commands to try. The server stops soon; a command with this LLMQUEUE_HOME starts it again."""
    parameters = conninfo_to_dict(after.dsn)
    psql = f"{shlex.quote(after.psql)} -h {shlex.quote(str(parameters['host']))} -U {parameters['user']}"
    unset = "  unset LLMQUEUE_DATABASE_URL   # also where a file .env sets it"
    return [
        "The database stays until the next demo. Each command starts the server if necessary:",
        "",
        f"  export LLMQUEUE_HOME={shlex.quote(str(after.home))}",
        *([unset] if after.has_url else []),
        f"  {after.program} status",
        f"  {after.program} dead list",
        f"  {after.program} tasks show {after.task}",
        f"  {after.program} status && {psql} {parameters['dbname']} -c 'table llmqueue.model_status'",
        "",
        f"Your own table next: {after.program} init --help",
    ]


def _table(limits: Sequence[Limit]) -> Table:
    table = Table(box=SIMPLE_HEAD, pad_edge=False, padding=(0, 0, 0, 1))
    table.add_column("model", no_wrap=True)
    for heading in ("limit/min", "calls", "fullest 60 s", "of limit", "quota used"):
        table.add_column(heading, justify="right", no_wrap=True)
    shown: set[str] = set()
    for limit in limits:
        window = limit.fullest
        table.add_row(
            "  after the change" if limit.model in shown else limit.model,
            f"{limit.rpm:,}",
            f"{limit.calls:,}",
            f"{window.calls:,}" if window else "-",
            Text(f"{window.share:.1%}", style="bold red" if window.is_over else "") if window else "-",
            f"{limit.share:.1%}" if limit.share is not None else "-",
        )
        shown.add(limit.model)
    return table
