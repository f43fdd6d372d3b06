"""`llmqueue audit`: was any sliding window over its limit? Read from the attempt log; judged in llmqueue/audit/."""

from __future__ import annotations

from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from llmqueue.cli.output import Column, clean, console, table, write_json, write_line
from llmqueue.errors import DatabaseRefused, UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import psycopg
    from psycopg.rows import TupleRow

    from llmqueue.audit import Chart, ModelReport
    from llmqueue.audit.log import Frame

SUFFIXES = {".svg", ".png"}
VIOLATIONS_SHOWN = 10
NOUNS = {"calls": "calls", "tokens": "tokens", "output_tokens": "output tokens"}


@dataclass(frozen=True, slots=True)
class Result:
    """What `audit` has found. `reaches_to` is the first grant of the whole log, `since` what was asked for.

    `not_judged` counts the windows that are not known in full, since the clock stepped back.
    """

    is_violated: bool
    not_judged: int
    reaches_to: datetime
    since: datetime | None
    read_at: datetime
    window_s: float
    guard_s: float
    attempts: int
    models: list[ModelReport]


@dataclass(frozen=True, slots=True)
class LimitRow:
    """A line of the table of models, or of that of their tokens: what is limited, beside the model's counts."""

    model: str
    what: str
    attempts: int
    worst: str
    use_pct: float | None
    unknown: int
    forfeited: int
    sent_late: int
    rate_limited: int
    final: int | None
    overshoot: int | None


def _percent(value: object) -> str:
    return f"{value:.1f}" if isinstance(value, float) else "-"


MODELS = (
    Column("model", "model"),
    Column("attempts", "attempts", is_right=True),
    Column("worst", "fullest", is_right=True),
    Column("use_pct", "% used", _percent, is_right=True),
    Column("unknown", "unknown", is_right=True),
    Column("forfeited", "forfeited", is_right=True),
    Column("sent_late", "late", is_right=True),
    Column("rate_limited", "429s", is_right=True),
)
TOKENS = (
    Column("model", "model"),
    Column("what", "charged", lambda what: NOUNS[str(what)]),
    Column("worst", "fullest", is_right=True),
    Column("use_pct", "% used", _percent, is_right=True),
    Column("final", "as used", is_right=True),
    Column("overshoot", "overshoot", is_right=True),
)


def audit(
    since: Annotated[
        str | None,
        typer.Option(metavar="TIME", help="Windows that end since then: 1h, 2d, 2026-01-31T08:00 [default: all]."),
    ] = None,
    model: Annotated[list[str] | None, typer.Option(metavar="NAME", help="Only this model. Repeatable.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Write JSON.")] = False,
    plot: Annotated[
        Path | None,
        typer.Option(dir_okay=False, metavar="FILE", help="Draw use against limits over time, as .svg or .png."),
    ] = None,
) -> None:
    """Recompute the worst sliding window of each model from the attempt log; exit code 1 on a violation.

    Calls sent at a moment that is not known are taken at their worst. Reads while the workers work; a million attempts
    take about 15 s of a core.
    """
    _check_plot(plot)
    from llmqueue.audit.log import read_frame

    with _open() as conn:
        _check_schema(conn)
        frame = read_frame(conn)
        result, charts = _read(conn, frame, _since(since, frame.now), model, is_drawn=plot is not None)
    if result is None:
        _write_none(as_json=as_json)
        return
    if as_json:
        write_json(asdict(result))
    elif console().is_terminal:
        _write_page(result)
    else:
        _write_lines(result)
    if plot is not None:
        _draw(plot, result, charts)
    raise typer.Exit(1 if result.is_violated else 0)


def _check_plot(plot: Path | None) -> None:
    """Before the log is read, which may take a while."""
    if plot is None:
        return
    if plot.suffix.lower() not in SUFFIXES:
        raise UsageError(f"--plot must be a file that ends with .svg or .png (got '{plot}')")
    if not plot.parent.is_dir():
        raise UsageError(f"cannot write {plot}: there is no folder {plot.parent}")
    if find_spec("matplotlib") is None:
        raise UsageError("--plot needs matplotlib. Install it: pip install 'llmqueue[plot]'")


def _open() -> psycopg.Connection[TupleRow]:
    from llmqueue.db.connect import connect, dsn
    from llmqueue.settings import load_settings

    return connect(dsn(load_settings()), application_name="llmqueue audit")


def _check_schema(conn: psycopg.Connection[TupleRow]) -> None:
    """A role that may read the log and the limiter, and nothing else, can audit."""
    from llmqueue.db.connect import require_schema

    with suppress(DatabaseRefused):
        require_schema(conn)


def _since(text: str | None, now: datetime) -> datetime | None:
    from llmqueue.audit import EPOCH
    from llmqueue.settings import parse_duration

    if text is None:
        return None
    with suppress(ValueError, OverflowError):
        age = parse_duration(text)
        if isinstance(age, timedelta):
            return max(now - age, EPOCH)
    try:
        since = max(datetime.fromisoformat(text).astimezone(), EPOCH)
    except (ValueError, OverflowError):
        raise UsageError(
            f"--since must be a duration such as 90m, 12h or 30d, or a time such as 2026-01-31T08:00 (got '{text}')"
        ) from None
    if since > now:
        raise UsageError(f"--since must not be in the future (got '{text}'; the database has {now.isoformat()})")
    return since


def _read(
    conn: psycopg.Connection[TupleRow],
    frame: Frame,
    since: datetime | None,
    models: list[str] | None,
    *,
    is_drawn: bool,
) -> tuple[Result | None, dict[str, Chart]]:
    """Judges the log; None if it is empty."""
    from llmqueue.audit import Auditor, Chart
    from llmqueue.audit.judge import SECOND_US
    from llmqueue.audit.log import AttemptLog

    log = AttemptLog(conn, frame, since, models)
    reach = log.reach()
    if reach is None:
        return None, {}
    reaches_to, last_at = reach
    charts: dict[str, Chart] = {}

    def chart(name: str) -> Chart:
        begin, end = (round(at.timestamp() * SECOND_US) for at in (max(since or reaches_to, reaches_to), last_at))
        return charts.setdefault(name, Chart(begin, max(begin, end) + SECOND_US))

    auditor = Auditor(frame.scope(since), chart if is_drawn else None)
    with _progress() as progress:
        for call in log.calls(progress):
            auditor.push(call)
    reports = auditor.finish()
    _check_models(models, reports, log.models)
    attempts = sum(report.attempts for report in reports)
    is_violated = any(report.is_violated for report in reports)
    not_judged = sum(report.not_judged for report in reports)
    frame_of = (reaches_to, since, frame.now, frame.window_s, frame.guard_s)
    return Result(is_violated, not_judged, *frame_of, attempts, reports), charts


def _check_models(wanted: list[str] | None, reports: list[ModelReport], known: set[str]) -> None:
    """A name that nothing was found for is mistaken for a model without a violation."""
    for name in wanted or ():
        if all(report.model != name for report in reports):
            names = f"It has: {', '.join(sorted(known)[:100])}" if known else "It has none at all"
            raise UsageError(f'there is no attempt of model "{name}" in that part of the log. {names}')


@contextmanager
def _progress() -> Iterator[Callable[[float], None]]:
    """A bar on stderr while that is a terminal."""
    screen = console(stderr=True)
    if not screen.is_terminal:
        yield lambda _part: None
        return
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

    columns = (TextColumn("reading the attempt log"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
    with Progress(*columns, console=screen, transient=True) as bar:
        task = bar.add_task("", total=1.0)
        yield lambda part: bar.update(task, completed=part)


def _write_none(*, as_json: bool) -> None:
    if as_json:
        write_json({"is_violated": False, "not_judged": 0, "reaches_to": None, "attempts": 0, "models": []})
    else:
        typer.echo("no attempts in the log")


def _write_lines(result: Result) -> None:
    write_line("log", result.reaches_to, result.since, result.read_at, result.attempts, result.window_s, result.guard_s)
    for m in result.models:
        counts = (m.attempts, m.sent, m.unknown, m.unsent, m.forfeited, m.sent_late, m.refused, m.rate_limited)
        write_line("model", m.model, *counts, m.clock_steps, m.not_judged, m.sent_early)
        for limit in m.limits:
            worst, final = limit.worst, None if limit.final is None else limit.final.used
            held = (worst.used, worst.limit, worst.from_at, worst.to_at)
            write_line("limit", m.model, limit.what, *held, limit.use_pct, limit.over, final, limit.overshoot)
        for limit in m.limits:
            for window in limit.violations:
                write_line("violation", m.model, limit.what, window.used, window.limit, window.from_at, window.to_at)
        if m.sent_late:
            write_line("late", m.model, m.sent_late, m.slowest_s)
        if m.sent_early:
            write_line("impossible", m.model, m.sent_early)
        if m.not_judged:
            write_line("not_judged", m.model, m.not_judged, m.clock_steps)


def _write_page(result: Result) -> None:
    screen = console()
    begin = result.reaches_to if result.since is None else result.since
    reach = "" if result.since is None else f"; the log reaches back to {_local(result.reaches_to)}"
    noun = "attempt" if result.attempts == 1 else "attempts"
    screen.print(f"{result.attempts:,} {noun} since {_local(begin)}{reach}", soft_wrap=True)
    rows = [row for model in result.models for row in _rows(model)]
    if calls := [row for row in rows if row.what == "calls"]:
        screen.print(table(calls, MODELS, f"Calls in any {result.window_s:g} s"))
    if tokens := [row for row in rows if row.what != "calls"]:
        screen.print(table(tokens, TOKENS, f"Tokens in any {result.window_s:g} s"))
    for model in result.models:
        for line in _violations(model, result.guard_s):
            screen.print(clean(line), style="red", soft_wrap=True)
        if model.not_judged:
            screen.print(clean(_unjudged(model)), style="bold yellow", soft_wrap=True)
    if not result.is_violated:
        left = f"; {_windows(result.not_judged)} not judged" if result.not_judged else ""
        screen.print(f"no window was over its limit{left}" if rows else "nothing to judge", soft_wrap=True)


def _unjudged(model: ModelReport) -> str:
    steps = "" if model.clock_steps <= 1 else f" {model.clock_steps:,} times"
    return (
        f"! {model.model}: {_windows(model.not_judged)} not judged: the clock stepped back{steps}, and of these only "
        "what was sent after it is counted"
    )


def _windows(count: int) -> str:
    return f"{count:,} window{'' if count == 1 else 's'}"


def _rows(model: ModelReport) -> Iterator[LimitRow]:
    for limit in model.limits:
        yield LimitRow(
            model.model,
            limit.what,
            model.attempts,
            f"{limit.worst.used:,} of {limit.worst.limit:,}",
            limit.use_pct,
            model.unknown,
            model.forfeited,
            model.sent_late,
            model.rate_limited,
            None if limit.final is None else limit.final.used,
            limit.overshoot,
        )


def _violations(model: ModelReport, guard_s: float) -> Iterator[str]:
    for limit in model.limits:
        noun = NOUNS[limit.what]
        for window in limit.violations[:VIOLATIONS_SHOWN]:
            span = f"from {_local(window.from_at)} to {_local(window.to_at)}"
            yield f"over: {model.model}: {window.used:,} {noun} {span}, limit {window.limit:,}"
        if limit.over:
            yield f"over: {model.model}: {limit.over:,} of {limit.windows:,} windows of {noun} in all"
    if model.sent_late:
        yield (
            f"late: {model.model}: calls sent later than {guard_s / 2:g} s after their grant: {model.sent_late:,}, "
            f"the slowest after {model.slowest_s:g} s"
        )
    if model.sent_early:
        yield f"impossible: {model.model}: calls sent before their grant, says the log: {model.sent_early:,}"


def _local(at: datetime) -> str:
    return at.astimezone().isoformat(timespec="milliseconds")


def _draw(plot: Path, result: Result, charts: dict[str, Chart]) -> None:
    from llmqueue.audit.plot import Panel, draw

    panels = [Panel(report, charts[report.model]) for report in result.models]
    if not panels:
        typer.echo(f"nothing to draw: {plot} is not written", err=True)
        return
    try:
        drawn = draw(panels, plot, result.window_s, datetime.now().astimezone().tzinfo)
    except OSError as error:
        raise UsageError(f"cannot write {plot}: {error.strerror}") from None
    left = f"; the {drawn:,} fullest of {len(panels):,} models, --model chooses others" if drawn < len(panels) else ""
    typer.echo(f"drawn: {plot}{left}", err=True)
