"""The report of a run: tables for the terminal, docs/chaos.md, and JSON."""

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
from bench.parts import prose, table

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
    return f"""{len(result.evidence.tasks):,} tasks: {solved:,} solved, {failed:,} dead letters. The backend refuses
        {verdict.refused:,} of these for good; {failed - verdict.refused:,} were hit by as many faults as they have
        attempts. {len(result.evidence.calls):,} calls, {verdict.paid_again:,} of them repeated, after
        {verdict.hits:,} attempts that ended in vain. {len(result.faults)} faults in {result.seconds:.0f} s, lease
        {result.lease_s:g} s; the last task ended {result.drained_s:.0f} s after the last fault."""


def steps(found: Steps) -> str:
    worst = ", ".join(f"{found.worst.get(model, 0)} of {rpm}" for model, rpm in CLOCK_RPM.items())
    return f"""{found.minutes:g} simulated minutes, {found.steps} steps of the database's clock (up to an hour back
        and forward) and {found.deaths} deaths of workers: {found.calls:,} calls, the fullest 60 s of true time
        held {worst}; {found.lost_alive} attempts of living workers were counted as lost."""


def violations(result: Result | None, found: Steps | None, measured: Sequence[Measured]) -> list[str]:
    seen = list(result.verdict.violations) if result else []
    seen += found.violations if found else []
    return seen + [f"{m.what}: {m.max_s:.1f} s, at most {m.target_s:g}" for m in measured if not m.is_met]


def show(title: str, cells: Cells) -> None:
    head, rows = cells
    grid = Table(box=SIMPLE_HEAD, title=title, title_justify="left", pad_edge=False)
    for number, name in enumerate(head):
        grid.add_column(name, justify="left" if number == 0 or name == "until" else "right")
    for cell in rows:
        grid.add_row(*cell)
    Console(highlight=False, markup=False, width=None if Console().is_terminal else 120).print(grid)


def as_json(result: Result | None, found: Steps | None, measured: Sequence[Measured]) -> dict[str, object]:
    report: dict[str, object] = {"violations": violations(result, found, measured)}
    if result:
        report |= {
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
        report["clock"] = asdict(found)
    return report | {"recovery": [asdict(m) for m in measured]}


def write(command: str, result: Result, found: Steps, measured: Sequence[Measured]) -> None:
    seen = violations(result, found, measured)
    verdict = "\n".join(f"- {line}" for line in seen) if seen else "No violation."
    texts = [_head(command), "## Verdict", verdict, prose(ends(result)), "## Faults", table(*faults(result))]
    texts += ["## Limits", table(*models(result)), "## Recovery", table(*recovery(measured))]
    PAGE.write_text("\n\n".join([*texts, "## Clock", prose(steps(found))]) + "\n", encoding="utf-8")


def _head(command: str) -> str:
    written = f"""Written by `{command}` on {datetime.now(UTC):%Y-%m-%d}: llmqueue {version("llmqueue")}, Python
        {platform.python_version()}, {os.cpu_count()} cores, everything on the same machine. The seed decides
        which fault comes when, where and for how long. Which tasks a fault hits depends on the machine."""
    setup = """**Setup.** Three workers, each with its own folder and a TCP proxy to the database; a proxy in front of
        the simulated backend; PostgreSQL 18; ten models with limits. The prompts are about the standard library:
        most for any model, some for one, hot ones every two seconds, some that the backend refuses for good. A
        fault comes every 2 to 6 s, at most two at a time. A killed worker is started again."""
    checks = """**Checks.** At the end the fleet finishes its work. Then each task has one end. Each answer is the
        right one and recorded once. No task was called more often than once plus once for each fault that hit it.
        No sliding 60 s of the backend's log holds more than the limit, and `llmqueue audit` agrees. Spill files
        are empty. No process has ended by itself or printed a traceback. There is no deadlock, and nothing is
        quarantined."""
    columns = """**Columns.** *Tasks hit* were in progress during such a fault, where it could affect them. *In vain*
        are their attempts that ended without an answer in the way in which such a fault ends them. *Recovery*
        counts from the end of the fault (from the moment of a kill) until the next grant, until an answer is
        recorded (after a fault of one worker: its next one), or until the killed worker's last task waits again.
        Of two faults at once, both are blamed."""
    limit = """**Limit.** Calls count when they arrive at the backend. One exception: a silent proxy or a frozen
        machine delays what was sent in time. A call that took longer than 0.25 s during such a silence counts
        when it was sent, by the attempt log. A prober that sends requests through the same proxy ten times a
        second detects the silence."""
    not_done = """**Not done.** No machine's clock is stepped; the database functions get a clock that steps (below).
        `fsync` is off, since processes are killed here and the machine is not."""
    return "\n\n".join(["# Chaos", *map(prose, (written, setup, checks, columns, limit, not_done))])
