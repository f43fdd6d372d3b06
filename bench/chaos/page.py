"""What a run says: tables for the terminal, docs/chaos.md, and JSON."""

from __future__ import annotations

import os
import platform
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from bench.chaos.clock import RPM as CLOCK_RPM
from bench.chaos.clock import Steps
from bench.chaos.measured import Measured
from bench.chaos.run import Result
from bench.limits.page import prose
from bench.parts import table

PAGE = Path(__file__).parents[2] / "docs" / "chaos.md"

Cells = tuple[tuple[str, ...], list[tuple[str, ...]]]


def _seconds(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def faults(result: Result) -> Cells:
    head: tuple[str, ...] = ("fault", "times", "tasks hit", "in vain", "until", "recovery p50 s", "max s")
    rows: list[tuple[str, ...]] = [
        (f.name, str(f.times), f"{f.tasks:,}", f"{f.in_vain:,}", f.until, _seconds(f.p50_s), _seconds(f.max_s))
        for f in result.felt
    ]
    return head, rows


def models(result: Result) -> Cells:
    head: tuple[str, ...] = ("model", "limit per min", "calls", "fullest 60 s", "held back on the way")
    rows: list[tuple[str, ...]] = [
        (model, str(seen.rpm), f"{seen.calls:,}", str(seen.worst), str(seen.held_back))
        for model, seen in result.verdict.models.items()
    ]
    return head, rows


def recovery(measured: Sequence[Measured]) -> Cells:
    head: tuple[str, ...] = ("recovery", "times", "p50 s", "max s", "at most s", "met")
    rows: list[tuple[str, ...]] = [
        (m.what, str(m.times), _seconds(m.p50_s), _seconds(m.max_s), f"{m.target_s:g}", "yes" if m.is_met else "**no**")
        for m in measured
    ]
    return head, rows


def ends(result: Result) -> str:
    verdict = result.verdict
    solved, failed = verdict.ends["solved"], verdict.ends["failed"]
    return f"""{len(result.evidence.tasks):,} tasks: {solved:,} solved, {failed:,} dead letters, of which the
        backend refuses {verdict.refused:,} for good and {failed - verdict.refused:,} were hit by as many faults as
        they have attempts. {len(result.evidence.calls):,} calls, {verdict.paid_again:,} of them made again, after
        {verdict.hits:,} attempts that ended in vain. {len(result.faults)} faults in {result.seconds:.0f} s, lease
        {result.lease_s:g} s; the last task ended {result.drained_s:.0f} s after the last fault."""


def steps(found: Steps) -> str:
    worst = ", ".join(f"{found.worst.get(model, 0)} of {rpm}" for model, rpm in CLOCK_RPM.items())
    return f"""{found.minutes:g} simulated minutes, {found.steps} steps of the database's clock (up to an hour back
        and forward) and {found.deaths} deaths of workers: {found.calls:,} calls, the fullest 60 s of true time
        held {worst}; {found.lost_alive} attempts of living workers were taken for lost."""


def violations(result: Result | None, found: Steps | None, measured: Sequence[Measured]) -> list[str]:
    said = list(result.verdict.violations) if result else []
    said += found.violations if found else []
    return said + [f"{m.what}: {m.max_s:.1f} s, at most {m.target_s:g}" for m in measured if not m.is_met]


def show(title: str, cells: Cells) -> None:
    head, rows = cells
    grid = Table(box=SIMPLE_HEAD, title=title, title_justify="left", pad_edge=False)
    for number, name in enumerate(head):
        grid.add_column(name, justify="left" if number == 0 or name == "until" else "right")
    for cell in rows:
        grid.add_row(*cell)
    Console(highlight=False, markup=False, width=None if Console().is_terminal else 120).print(grid)


def as_json(result: Result | None, found: Steps | None, measured: Sequence[Measured]) -> dict[str, object]:
    said: dict[str, object] = {"violations": violations(result, found, measured)}
    if result:
        said |= {
            "seed": result.seed,
            "seconds": result.seconds,
            "tasks": len(result.evidence.tasks),
            "calls": len(result.evidence.calls),
            "ends": dict(result.verdict.ends),
            "attempts": {
                f"{outcome} {error or ''}".strip(): n for (outcome, error), n in result.verdict.outcomes.items()
            },
            "faults": [asdict(felt) for felt in result.felt],
            "models": {model: asdict(seen) for model, seen in result.verdict.models.items()},
        }
    if found:
        said["clock"] = asdict(found)
    return said | {"recovery": [asdict(m) for m in measured]}


def write(command: str, result: Result, found: Steps, measured: Sequence[Measured]) -> None:
    said = violations(result, found, measured)
    verdict = "\n".join(f"- {line}" for line in said) if said else "No violation."
    texts = [_head(command), "## Verdict", verdict, prose(ends(result)), "## Faults", table(*faults(result))]
    texts += ["## Limits", table(*models(result)), "## Recovery", table(*recovery(measured))]
    PAGE.write_text("\n\n".join([*texts, "## Clock", prose(steps(found))]) + "\n", encoding="utf-8")


def _head(command: str) -> str:
    written = f"""Written by `{command}` on {datetime.now(UTC):%Y-%m-%d}: llmqueue {version("llmqueue")}, Python
        {platform.python_version()}, {os.cpu_count()} cores, everything on the same machine. The seed decides
        which fault comes when, to whom and for how long; what it meets is decided by the machine."""
    does = """Three workers, each with a folder of its own and a TCP proxy between it and the database; another
        proxy in front of the simulated backend; PostgreSQL 18; ten models with limits; prompts about the
        standard library, most for any model, some for one, hot ones every two seconds, some that the backend
        refuses for good. A fault comes every 2 to 6 s, two at a time at the most. A killed worker is started
        again. Afterwards the fleet may finish, and everything is looked at: each task has one end, each answer
        is the right one and recorded once, no task was called more often than once and once more for each fault
        that hit it, no sliding 60 s of the backend's log holds more than the limit, `llmqueue audit` agrees,
        spill files are empty, no process has ended by itself or said Traceback, no deadlock, nothing set aside."""
    reads = """*Tasks hit* were under way while such a fault lasted, where it could be felt; *in vain* are those of
        their attempts that ended without an answer, in the way in which such a fault ends them. *Recovery*
        counts from the fault's end (a kill's is its moment): until the next call is granted, an answer is
        recorded (of a single worker: its next one), or the killed worker's last task waits again. With two
        faults at once both are blamed."""
    held = """The limit is judged by arrivals at the backend. A silent proxy or a machine that stands still holds
        back what was sent in time: a call whose way took longer than 0.25 s while there was such a silence
        (felt by a prober that asks through the same proxy ten times a second) counts at the moment at which it
        was sent, by the attempt log. All others count where they arrived. What was *not* done: no clock of a
        machine is stepped, the database functions get one that steps (below); `fsync` is off, since processes
        are killed here and the machine is not."""
    return "\n\n".join(["# Chaos", *map(prose, (written, does, reads, held))])
