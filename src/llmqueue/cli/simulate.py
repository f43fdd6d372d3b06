"""`llmqueue simulate`: my backlog, these limits: when is it done, and how long do hot tasks wait?"""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import asdict, replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Annotated

import typer

from llmqueue.cli.output import Column, console, readable, table, write_json, write_line
from llmqueue.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from llmqueue.forecast.report import ModelReport, Report
    from llmqueue.forecast.run import Progress
    from llmqueue.forecast.scenario import Lane, Model, Scenario
    from llmqueue.settings import Settings

MODELS = (
    Column("model", "model"),
    Column("done", "done", is_right=True),
    Column("calls", "calls", is_right=True),
    Column("refused", "refused", is_right=True),
    Column("rpm", "limit", is_right=True),
    Column("worst_60s", "worst 60 s", is_right=True),
    Column("use_pct", "% used", is_right=True),
)
TOKENS = (
    Column("model", "model"),
    Column("tpm", "tokens limit", is_right=True),
    Column("worst_60s_tokens", "worst 60 s", is_right=True),
    Column("tokens_use_pct", "% used", is_right=True),
)


def simulate(
    from_database: Annotated[
        bool, typer.Option("--from-database", help="Take limits, pools and backlog from the database; changes nothing.")
    ] = False,
    model: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=RPM", help="A model and its calls per minute; repeatable."),
    ] = None,
    tpm: Annotated[list[str] | None, typer.Option(metavar="NAME=N", help="Its tokens per minute; repeatable.")] = None,
    max_concurrency: Annotated[
        list[str] | None, typer.Option(metavar="NAME=N", help="Its calls in flight at most; repeatable.")
    ] = None,
    weight: Annotated[
        list[str] | None, typer.Option(metavar="NAME=W", help="Its share of the default pool; repeatable.")
    ] = None,
    tasks: Annotated[
        list[str] | None,
        typer.Option(metavar="[LANE=]N", help="Backlog of the default pool, or of a model or pool; repeatable."),
    ] = None,
    hot: Annotated[float, typer.Option(min=0, help="Hot tasks per minute, at random times.")] = 0.0,
    workers: Annotated[int, typer.Option(min=1, max=1000, help="Workers.")] = 1,
    concurrency: Annotated[
        int | None, typer.Option(min=1, help="Calls in flight of each; default LLMQUEUE_CONCURRENCY.")
    ] = None,
    provider: Annotated[
        str, typer.Option(help="How limits are judged: sliding, bucket, minute, ten-seconds or second.")
    ] = "sliding",
    for_: Annotated[str, typer.Option("--for", metavar="TIME", help="Simulate at most this long.")] = "10m",
    input_tokens: Annotated[int | None, typer.Option(min=1, help="Of a usual call, for tpm.")] = None,
    output_tokens: Annotated[int | None, typer.Option(min=0, help="Of a usual call, for tpm.")] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Repeat the same run.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Write JSON.")] = False,
) -> None:
    """Say when a backlog is done under these limits and how long hot tasks wait, without a single real call.

    The real scheduler works in a temporary database, in accelerated time, against models with measured latencies and a
    provider that judges each call. With --from-database the other options change what was found there. Exit code 1 if
    a limit was ever exceeded.
    """
    from llmqueue.forecast.run import simulate as run
    from llmqueue.forecast.scenario import Scenario
    from llmqueue.forecast.stage import start_server
    from llmqueue.settings import load_settings

    settings = load_settings()
    base = _from_database(settings) if from_database else None
    usual = base or Scenario.empty(guard_s=settings.guard_s)
    columns = {"tpm": tpm, "max_concurrency": max_concurrency, "weight": weight}
    usual = replace(usual, models=_models(usual.models, model or [], columns))
    try:
        scenario = replace(
            usual,
            backlog=_backlog(tasks, usual) if tasks else usual.backlog,
            hot_per_minute=hot,
            workers=workers,
            slots=concurrency or settings.concurrency,
            provider=provider,
            for_s=_seconds(for_),
            input_tokens=input_tokens or usual.input_tokens,
            output_tokens=usual.output_tokens if output_tokens is None else output_tokens,
            seed=seed,
        ).checked()
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None
    with _progress(scenario) as on_progress:
        report = run(scenario, start_server(settings.home), on_progress)
    _write(report, as_json=as_json)
    raise typer.Exit(1 if any(each.is_over for each in report.models) else 0)


def _from_database(settings: Settings) -> Scenario:
    from llmqueue.cli.database import open_database
    from llmqueue.forecast import source
    from llmqueue.forecast.scenario import Scenario

    with open_database("simulate", settings) as conn:
        source.prepare(conn)
        models, backlog = source.read_models(conn), source.read_backlog(conn)
        input_tokens, output_tokens = source.read_tokens(conn, backlog)
        return replace(
            Scenario.empty(guard_s=source.read_guard_s(conn)),
            models=models,
            backlog=backlog,
            pools=source.read_pools(conn),
            input_tokens=input_tokens,
            output_tokens=output_tokens,
        )


def _models(known: tuple[Model, ...], rpm: list[str], columns: dict[str, list[str] | None]) -> tuple[Model, ...]:
    """The models that are known, changed and added to by the options."""
    from llmqueue.forecast.scenario import Model

    models = {model.name: model for model in known}
    for name, limit in _numbers("--model", rpm).items():
        models[name] = replace(models.get(name, Model(name, 0)), rpm=int(limit))
    for column, given in columns.items():
        option = f"--{column.replace('_', '-')}"
        for name, value in _numbers(option, given or [], is_whole=column != "weight").items():
            if name not in models:
                raise UsageError(f"{option} {name}: there is no such model; name it with --model {name}=RPM")
            models[name] = replace(models[name], columns={**models[name].columns, column: value})
    return tuple(models.values())


def _numbers(option: str, given: list[str], *, is_whole: bool = True) -> dict[str, int | float]:
    numbers: dict[str, int | float] = {}
    for text in given:
        name, _, number = text.rpartition("=")
        try:
            value = int(number) if is_whole else float(number)
        except ValueError:
            value = -1
        if not name or not 0 <= value < 2**31:
            raise UsageError(f"{option} {text}: must be NAME=NUMBER, such as kimi-k2.5=600")
        numbers[name] = value
    return numbers


def _backlog(given: list[str], scenario: Scenario) -> tuple[Lane, ...]:
    from llmqueue.forecast.scenario import Lane

    known = {model.name for model in scenario.models} | {member.pool for member in scenario.pools}
    lanes = []
    for text in given:
        lane, _, number = text.rpartition("=")
        if not (number.isascii() and number.isdigit() and int(number)):
            raise UsageError(f"--tasks {text}: must be a number of tasks, or NAME=NUMBER")
        if lane and lane not in known:
            raise UsageError(f"--tasks {text}: there is no model or pool {lane}; name it with --model {lane}=RPM")
        lanes.append(Lane(lane, int(number)))
    return tuple(lanes)


def _seconds(text: str) -> float:
    from llmqueue.settings import parse_duration

    try:
        duration = parse_duration(text)
    except ValueError:
        duration = None
    if not isinstance(duration, timedelta) or not duration:
        raise UsageError(f"--for {text}: must be a duration such as 90s, 10m or 2h")
    return duration.total_seconds()


@contextmanager
def _progress(scenario: Scenario) -> Iterator[Progress]:
    """A bar on a terminal: whichever is nearer to its end, the time or the backlog."""
    screen = console(stderr=True)
    if not screen.is_terminal:
        yield lambda _at_s, _done: None
        return
    from rich.progress import BarColumn, Progress, TextColumn

    with Progress(TextColumn("{task.description}"), BarColumn(), console=screen, transient=True) as bar:
        task = bar.add_task("starting", total=1.0)

        def show(at_s: float, done: int) -> None:
            share = max(at_s / scenario.for_s, done / scenario.tasks if scenario.tasks else 0.0)
            text = f"{_exact(at_s)} simulated, {done:,} done"
            bar.update(task, completed=min(share, 1.0), description=text)

        yield show


def _write(report: Report, *, as_json: bool) -> None:
    screen = console()
    if as_json:
        write_json({**asdict(report), "done_at": _done_at(report)})
    elif screen.is_terminal:
        screen.print(table(report.models, MODELS))
        if with_tpm := _with_tpm(report):
            screen.print(table(with_tpm, TOKENS))
        screen.print(_rejections(report))
        for line in _sentences(report):
            typer.echo(line)
    else:
        _write_lines(report)


def _write_lines(report: Report) -> None:
    for m in report.models:
        write_line("model", m.model, m.done, m.calls, m.refused, m.rpm, m.worst_60s, m.use_pct)
    for m in _with_tpm(report):
        write_line("tokens", m.model, m.tpm, m.worst_60s_tokens, m.tokens_use_pct)
    for m in report.models:
        write_line("rejections", m.model, *(f"{kind}={refused}" for kind, refused in m.rejections.items()))
    write_line("backlog", report.backlog, report.backlog_done, _rounded(report.ends_after_s), _done_at(report))
    write_line("hot", report.hot, report.hot_sent, _rounded(report.hot_p50_s), _rounded(report.hot_p99_s))
    write_line("oldest", _rounded(report.oldest_cold_s))


def _with_tpm(report: Report) -> list[ModelReport]:
    return [each for each in report.models if each.tpm is not None]


def _rejections(report: Report) -> object:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    grid = Table(box=SIMPLE_HEAD, title="Refused by a provider that judges by", title_justify="left", pad_edge=False)
    grid.add_column("model", overflow="fold")
    for kind in report.models[0].rejections:
        grid.add_column(kind, justify="right")
    for each in report.models:
        grid.add_row(each.model, *(f"{refused:,}" for refused in each.rejections.values()))
    return grid


def _sentences(report: Report) -> Iterator[str]:
    if report.backlog:
        yield f"backlog: {_backlog_sentence(report)}"
    if report.hot:
        yield (
            f"hot tasks: {report.hot_sent:,} of {report.hot:,} sent; "
            f"half of them after {_wait(report.hot_p50_s)}, 99 of 100 after {_wait(report.hot_p99_s)}"
        )
    if report.backlog:
        oldest = (
            "not sent in that time" if report.oldest_cold_s is None else f"sent after {_wait(report.oldest_cold_s)}"
        )
        yield f"the oldest task of the backlog: {oldest}"
    for count, what in (
        (report.retries, "calls were refused or timed out and made again"),
        (report.late_grants, "grants came too late and were given back"),
        (report.buried, "tasks ended as dead letters"),
    ):
        if count:
            yield f"{count:,} {what}"
    pace = f", {report.calls / report.wall_s:,.0f} a second" if report.wall_s > 0 else ""
    yield f"simulated {_exact(report.simulated_s)} in {_exact(report.wall_s)} ({report.calls:,} calls{pace})"


def _backlog_sentence(report: Report) -> str:
    at = f"{when:%Y-%m-%d %H:%M}" if (when := _done_at(report)) else "never"
    if report.done_after_s is not None:
        return f"{readable(report.backlog)} done after {_exact(report.done_after_s)}: started now, at {at}"
    done = f"{report.backlog_done:,} of {report.backlog:,} done in {_exact(report.simulated_s)}"
    if report.left_s is None:
        return f"{done}; the rest does not move"
    return f"{done}; at this pace the rest takes {_exact(report.left_s)} more: started now, until {at}"


def _done_at(report: Report) -> datetime | None:
    if not report.backlog or report.ends_after_s is None:
        return None
    return (datetime.now(UTC) + timedelta(seconds=round(report.ends_after_s))).astimezone()


def _rounded(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds, 3)


def _wait(seconds: float | None) -> str:
    if seconds is None:
        return "-"
    return f"{seconds:.2f} s" if seconds < 60 else _exact(seconds)


def _exact(seconds: float) -> str:
    """Seconds as `8.5 s`, `8 min 20 s`, `3 h 20 min`."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours:,} h {minutes} min"
