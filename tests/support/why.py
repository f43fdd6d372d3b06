"""Results of llmqueue.why() about a task, at the time of the queue's clock."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

from tests.support.sql import T0, Queue

EARLIER = T0 - timedelta(hours=1)


def why(queue: Queue, key: object) -> list[dict[str, Any]]:
    return queue.rows("select * from llmqueue.why(%s::llmqueue.task_id)", key)


def only(queue: Queue, key: object) -> dict[str, Any]:
    (row,) = why(queue, key)
    return row


def summary(queue: Queue, key: object) -> tuple[str, str | None, str | None, datetime | None]:
    row = only(queue, key)
    return row["state"], row["reason"], row["model"], row["until_at"]


def detail(queue: Queue, key: object, *names: str) -> tuple[Any, ...]:
    found = only(queue, key)["detail"]
    return tuple(found.get(name) for name in names)


def add(queue: Queue, **columns: Any) -> Any:
    """Inserts a ready task of model m that has been due for an hour; returns its key."""
    return queue.add(**{"model": "m", "run_at": EARLIER, **columns})[0]


def start_cooldown(queue: Queue, seconds: float) -> None:
    assert queue.now is not None
    queue.rows(
        "insert into llmqueue.model_state (model, cooldown_started_at, cooldown_until, cooldown_reason) "
        "values ('m', %s, %s, '429')",
        queue.now,
        queue.now + timedelta(seconds=seconds),
    )
