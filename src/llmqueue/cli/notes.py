"""What `llmqueue status` says below its tables: what needs somebody's hand, with its remedy, and what is closed."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING

from llmqueue.cli.output import moment

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from datetime import datetime

    from llmqueue.cli.model_status import ModelStatus
    from llmqueue.cli.pools import Member
    from llmqueue.cli.status import SetAside, Waiting, Worker


def notes(
    backlog: Sequence[Waiting],
    models: Sequence[ModelStatus],
    pools: Sequence[Member],
    workers: Sequence[Worker],
    aside: SetAside,
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
    yield from filter(None, (model.closed for model in models))
    for model in models:
        if model.model in day_ends and (used := used_up(model)):
            yield f"model {model.model} has used {' and '.join(used)}; its day ends at {moment(day_ends[model.model])}"
    if aside.tasks:
        yield (
            f"{aside.tasks:,} set aside, since the row cannot be written "
            f"({aside.example}: {aside.reason}). See: llmqueue dead list; once that is cured: llmqueue dead retry"
        )
    if backlog and not any(worker.state != "dead" for worker in workers):
        yield "no worker is running. Start one: llmqueue worker"


def quiet_minute(because: str, until: datetime) -> str:
    """Why nothing is granted after a failover or a restore; see sql/functions/end_of_epoch.sql."""
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
        f"the backend {troubled[-1].backend_trouble} (since {moment(since)}, {who}). It is tried again by itself, at "
        "no attempt of a task's; LLMQUEUE_BACKEND_URL names it"
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
        able = [model for model in models.values() if model.is_able]
        if not able:
            yield f"{_tasks(lane)} waiting, and no model may take them. Run: llmqueue models set NAME --rpm N"
        elif not any(model.weight > 0 for model in able):
            yield (
                f"{_tasks(lane)} waiting that name no model, and no model that may take them has a weight. "
                f"Run: llmqueue models set {shlex.quote(able[0].model)} --weight 1"
            )
        return
    names = dict.fromkeys([lane.model, *(members or [])])
    if any(models[name].is_able for name in names if name in models):
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
