"""`llmqueue backend`: the simulated Models Backend, for the demo, tests and sizing."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from rich.console import Console

    from llmqueue.fake_backend import SimulatorConfig


def backend(
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port to listen on; 0 picks a free one.")] = 8080,
    speed: Annotated[float, typer.Option(help="Divides every latency; 10 is ten times faster.")] = 1.0,
    instant: Annotated[bool, typer.Option("--instant", help="No latency at all.")] = False,
    limit: Annotated[
        list[str] | None,
        typer.Option(metavar="MODEL=RPM", help="The backend's own calls per minute; repeatable."),
    ] = None,
    provider: Annotated[
        str, typer.Option(help="How it judges them: sliding, bucket, minute, ten-seconds or second.")
    ] = "sliding",
    model: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="Serve these models instead of the ten; repeatable."),
    ] = None,
    any_model: Annotated[bool, typer.Option("--any-model", help="Serve models of any name.")] = False,
    error_rate: Annotated[float, typer.Option(min=0, max=1, help="Share of calls (0 to 1) answered with 500.")] = 0.0,
    unavailable_rate: Annotated[
        float, typer.Option(min=0, max=1, help="Share of calls answered with 503 and Retry-After.")
    ] = 0.0,
    hang_rate: Annotated[float, typer.Option(min=0, max=1, help="Share of calls never answered.")] = 0.0,
    reset_rate: Annotated[float, typer.Option(min=0, max=1, help="Share of calls whose connection is reset.")] = 0.0,
    unreadable_rate: Annotated[
        float, typer.Option(min=0, max=1, help="Share of calls answered with broken JSON.")
    ] = 0.0,
    log: Annotated[
        Path | None,
        typer.Option(dir_okay=False, metavar="FILE", help="Append every call to this JSONL file."),
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Repeat the same latencies and faults.")] = None,
) -> None:
    """Run a simulated Models Backend with the latencies of ten measured models."""
    from llmqueue import fake_backend

    try:
        config = fake_backend.SimulatorConfig(
            models=tuple(model) if model else fake_backend.DEFAULT_MODELS,
            any_model=any_model,
            speed=speed,
            instant=instant,
            rpm=_rpm_by_model(limit or []),
            provider=provider,
            faults=fake_backend.FaultRates(error_rate, unavailable_rate, hang_rate, reset_rate, unreadable_rate),
            seed=seed,
            log_path=log,
        )
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None
    try:
        fake_backend.serve(config, host, port, lambda url: _announce(url, config))
    except fake_backend.CannotListen as error:
        typer.echo(str(error), err=True)
        raise typer.Exit(1) from None


def _rpm_by_model(limits: list[str]) -> dict[str, int | None]:
    rpm: dict[str, int | None] = {}
    for limit in limits:
        model, _, number = limit.rpartition("=")
        if not model or not (number.isascii() and number.isdigit()):
            raise typer.BadParameter(f"{limit!r} is not MODEL=RPM, such as kimi-k2.5=600", param_hint="--limit")
        rpm[model] = int(number)
    return rpm


def _announce(url: str, config: SimulatorConfig) -> None:
    """One line that scripts can wait for, and for people a table of what to expect."""
    from rich.console import Console

    count = f"{len(config.models)} model{'' if len(config.models) == 1 else 's'}"
    pace = "instant" if config.instant else f"speed {config.speed:g}"
    typer.echo(f"simulated Models Backend on {url} ({count}, {pace})")
    console = Console()
    if console.is_terminal:
        _print_models(console, config)


def _print_models(console: Console, config: SimulatorConfig) -> None:
    from rich.table import Table

    from llmqueue.fake_backend.latency import fit_for

    table = Table("model", box=None)
    for heading in ("p50 s", "p95 s", "max s", "limit per min"):
        table.add_column(heading, justify="right")
    for position, model in enumerate(config.models):
        fit = fit_for(model, position)
        seconds = [0.0 if config.instant else s / config.speed for s in (fit.p50_s, fit.p95_s, fit.max_s)]
        rpm = config.rpm.get(model)
        table.add_row(model, *(f"{s:.2f}" for s in seconds), "none" if rpm is None else str(rpm))
    console.print(table)
