"""The page of `llmqueue status`: its rows, its tables, and the notes below them, each with its remedy."""

from __future__ import annotations

import shlex
from dataclasses import asdict, dataclass
from datetime import datetime
from decimal import Decimal
from typing import TYPE_CHECKING

from llmqueue.cli.model_status import LINE_END, ModelStatus, cooldown_ends
from llmqueue.cli.output import Column, age, clean, console, duration, moment, readable, table, write_json, write_line

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from rich.console import RenderableType

    from llmqueue.cli.pools import Member


@dataclass(frozen=True, slots=True)
class Waiting:
    """A row of llmqueue.backlog, with the time left from llmqueue.eta; model '' is the default pool."""

    model: str
    status: str
    tasks: int
    is_estimate: bool
    oldest_at: datetime | None
    seconds_left: int | None

    @property
    def count(self) -> str:
        return f"about {self.tasks:,}" if self.is_estimate else f"{self.tasks:,}"


@dataclass(frozen=True, slots=True)
class Worker:
    """A row of llmqueue.worker_status."""

    name: str
    version: str
    state: str
    running: int
    heartbeat_age_s: Decimal
    started_at: datetime
    backend_trouble: str | None = None
    backend_troubled_at: datetime | None = None


@dataclass(frozen=True, slots=True)
class Quarantine:
    """Tasks in quarantine, since their row cannot be written: counted up to 10,000, and the newest reason."""

    tasks: int
    example: str | None
    reason: str | None


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Everything that `status` shows, read at about the same time."""

    database: str
    backlog: list[Waiting]
    models: list[ModelStatus]
    workers: list[Worker]
    quarantined: Quarantine
    notes: list[str]


BACKLOG = (
    Column("model", "model", lambda name: str(name) or "(any)"),
    Column("status", "status"),
    Column("count", "tasks", is_right=True),
    Column("oldest_at", "oldest", age, is_right=True),
    Column("seconds_left", "time left", duration, is_right=True),
)
MODELS = (
    Column("model", "model"),
    Column("calls_60s", "calls in 60 s", is_right=True),
    Column("rpm", "limit", is_right=True),
    Column("lowered_rpm", "now", is_right=True, is_optional=True),
    Column("use_pct", "% used", is_right=True),
    Column("tokens_of_tpm", "tokens in 60 s", is_right=True, is_optional=True),
    Column("output_of_tpm", "output in 60 s", is_right=True, is_optional=True),
    Column("calls_of_rpd", "calls today", is_right=True, is_optional=True),
    Column("tokens_of_tpd", "tokens today", is_right=True, is_optional=True),
    Column("running", "running", is_right=True),
    Column("max_concurrency", "max.", is_right=True),
    Column("lowered_concurrency", "now", is_right=True, is_optional=True),
    Column("enabled", "enabled"),
    Column("cooldown_until", "cooldown ends", cooldown_ends, is_optional=True),
)
# Fields of a line for a program, in an order that stays.
MODEL_LINE = (
    *("model", "calls_60s", "rpm", "use_pct", "running", "max_concurrency", "enabled"),
    *LINE_END,
)
WORKERS = (
    Column("name", "worker"),
    Column("state", "state"),
    Column("running", "running", is_right=True),
    Column("heartbeat_age_s", "heartbeat", lambda s: f"{s} s ago", is_right=True),
    Column("started_at", "started", age, is_right=True),
    Column("version", "version"),
)


def write(snapshot: Snapshot, *, as_json: bool) -> None:
    screen = console()
    if as_json:
        write_json(asdict(snapshot))
    elif screen.is_terminal:
        screen.print(page(snapshot))
    else:
        _write_lines(snapshot)


def _write_lines(snapshot: Snapshot) -> None:
    write_line("database", snapshot.database)
    for b in snapshot.backlog:
        write_line("backlog", b.model or "(any)", b.status, b.tasks, b.is_estimate, b.oldest_at, b.seconds_left)
    for m in snapshot.models:
        write_line("model", *(getattr(m, field) for field in MODEL_LINE))
    for w in snapshot.workers:
        write_line("worker", w.name, w.state, w.running, w.heartbeat_age_s, w.started_at, w.version)
    for note in snapshot.notes:
        write_line("note", note)


def page(snapshot: Snapshot) -> RenderableType:
    from rich.console import Group
    from rich.text import Text

    parts: list[RenderableType] = [Text(f"database: {clean(snapshot.database)}")]
    if snapshot.backlog:
        parts.append(table(snapshot.backlog, BACKLOG, "Backlog"))
    else:
        parts.append(Text("nothing waits"))
    if snapshot.models:
        parts.append(table(snapshot.models, MODELS, "Models"))
    if snapshot.workers:
        parts.append(table(snapshot.workers, WORKERS, "Workers"))
    parts += [Text(f"! {clean(note)}", style="yellow") for note in snapshot.notes]
    left = [row.seconds_left for row in snapshot.backlog if row.seconds_left is not None]
    if left:
        parts.append(Text(f"time left at the limits: at least {readable(duration(max(left)))}"))
    return Group(*parts)


def notes(
    backlog: Sequence[Waiting],
    models: Sequence[ModelStatus],
    pools: Sequence[Member],
    workers: Sequence[Worker],
    quarantine: Quarantine,
    day_ends: Mapping[str, datetime],
) -> Iterator[str]:
    """The notes, in the order of the tables. `day_ends` has the models that have used up their day."""
    by_name = {model.model: model for model in models}
    members: dict[str, list[str]] = {}
    for member in pools:
        members.setdefault(member.pool, []).append(member.model)
    for lane in backlog:
        if lane.status == "unsolved":
            yield from _stuck(lane, by_name, members.get(lane.model))
    yield from _backend(workers)
    yield from filter(None, (model.cooldown for model in models))
    for model in models:
        if model.model in day_ends and (used := used_up(model)):
            yield f"model {model.model} has used {' and '.join(used)}; its day ends at {moment(day_ends[model.model])}"
    if quarantine.tasks:
        yield (
            f"{quarantine.tasks:,} quarantined, since the row cannot be written "
            f"({quarantine.example}: {quarantine.reason}). "
            "See: llmqueue dead list; once that is cured: llmqueue dead retry"
        )
    if backlog and not any(worker.state != "dead" for worker in workers):
        yield "no worker is running. Start one: llmqueue worker"


def quiet_minute(because: str, until: datetime) -> str:
    """Why nothing is granted after a failover or a restore; see end_of_epoch.sql."""
    what = {"timeline": "a failover or a recovery", "system": "a restore on another server"}.get(because, "a restore")
    return f"after {what} state may be lost: nothing is granted until {moment(until)}, so that no limit is overstepped"


def _backend(workers: Sequence[Worker]) -> Iterator[str]:
    alive = [worker for worker in workers if worker.state != "dead"]
    troubled = [worker for worker in alive if worker.backend_trouble]
    since = min((worker.backend_troubled_at for worker in troubled if worker.backend_troubled_at), default=None)
    if since is None:
        return
    who = f"{len(troubled):,} of {len(alive):,} workers"
    yield (
        f"the backend {troubled[-1].backend_trouble} (since {moment(since)}, {who}). llmqueue keeps probing it; no "
        "attempts are consumed meanwhile; LLMQUEUE_BACKEND_URL names it"
    )


def used_up(model: ModelStatus) -> list[str]:
    """The limits of the day that leave no room for a call like the others of today."""
    used = []
    if model.rpd and model.calls_today >= model.rpd:
        used.append(f"its rpd of {model.rpd:,}")
    if model.tpd and model.tokens_today + model.tokens_today // max(1, model.calls_today) > model.tpd:
        part = "" if model.tokens_today >= model.tpd else f"{model.tokens_today:,} of "
        used.append(f"{part}its tpd of {model.tpd:,}")
    return used


def _stuck(lane: Waiting, models: Mapping[str, ModelStatus], members: Sequence[str] | None) -> Iterator[str]:
    """Why nobody may take the tasks of a lane; nothing if somebody may."""
    if lane.model == "":
        able = [model for model in models.values() if model.is_enabled]
        if not able:
            yield f"{_tasks(lane)} waiting, and no model may take them. Run: llmqueue models set NAME --rpm N"
        elif not any(model.weight > 0 for model in able):
            yield (
                f"{_tasks(lane)} waiting that name no model, and no model that may take them has a weight. "
                f"Run: llmqueue models set {shlex.quote(able[0].model)} --weight 1"
            )
        return
    names = dict.fromkeys([lane.model, *(members or [])])
    if any(models[name].is_enabled for name in names if name in models):
        return
    quoted, model = shlex.quote(lane.model), models.get(lane.model)
    if members is not None:
        why = ", ".join(f"{name} {_paused(models.get(name))}" for name in names if name in models or name in members)
        yield f'{_tasks(lane)} waiting for the pool "{lane.model}", none of whose models may take them: {why}'
    elif model is None:
        yield (
            f'{_tasks(lane)} for the model "{lane.model}", which nobody has configured. '
            f"Run: llmqueue models set {quoted} --rpm N"
        )
    elif not model.enabled:
        yield f'{_tasks(lane)} waiting for "{lane.model}", which is paused. Run: llmqueue models resume {quoted}'
    else:
        yield f'{_tasks(lane)} waiting for "{lane.model}", whose {_zeros(model)}'


def _paused(model: ModelStatus | None) -> str:
    if model is None:
        return "is not configured"
    return "is paused" if not model.enabled else f"has no room, its {_zeros(model)}"


def _zeros(model: ModelStatus) -> str:
    return f"{' and '.join(model.zeros)} {'is' if len(model.zeros) == 1 else 'are'} 0"


def _tasks(lane: Waiting) -> str:
    return "1 task" if lane.tasks == 1 else f"{lane.count} tasks"
