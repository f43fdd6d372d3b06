"""llmqueue.drain_state: the tasks that --drain waits for, and the ones that it reports and leaves."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from tests.support.sql import T0, Queue, retry


def drain(queue: Queue, models: list[str] | None = None, wait_s: float = 60) -> dict[tuple[str, str] | None, Any]:
    """Reasons and how many tasks of each, or {"waits": True}."""
    found = queue.rows("select * from llmqueue.drain_state(%s, %s)", models, wait_s)
    if not found[0]["is_done"]:
        return {None: "waits"}
    return {(row["lane"], row["reason"]): row["tasks"] for row in found if row["reason"] is not None}


def test_an_empty_queue_is_done(queue: Queue) -> None:
    assert drain(queue) == {}


@pytest.mark.parametrize("columns", [{}, {"model": "m"}])
def test_it_waits_for_what_a_served_model_can_take(queue: Queue, columns: dict[str, Any]) -> None:
    queue.model("m")
    queue.add(**columns)

    assert drain(queue) == {None: "waits"}
    assert drain(queue, ["m"]) == {None: "waits"}


def test_it_waits_for_what_others_run_and_for_what_is_due_soon(queue: Queue) -> None:
    queue.model("m", 60000)
    queue.now = None
    queue.add(2)
    running, delayed = queue.claim(2).grants

    queue.settle(retry(delayed, delay_s=30))
    assert drain(queue) == {None: "waits"}
    queue.complete(running)
    assert drain(queue) == {None: "waits"}
    assert drain(queue, wait_s=10) == {("", "due later"): 1}


def test_it_names_what_nobody_can_take(queue: Queue) -> None:
    queue.model("m")
    queue.model("paused", 0)
    queue.model("off", enabled=False)
    queue.model("full", max_concurrency=0)
    queue.add(2, model="nobody")
    for name in ("paused", "off", "full"):
        queue.add(model=name)
    queue.add(model="m", run_at=T0 + timedelta(hours=1))

    paused = "its model is paused or not served here"
    assert drain(queue) == {
        ("nobody", "its model is not configured"): 2,
        ("paused", paused): 1,
        ("off", paused): 1,
        ("full", paused): 1,
        ("m", "due later"): 1,
    }


def test_a_model_that_is_not_served_here_does_not_hold_a_drain(queue: Queue) -> None:
    queue.model("here")
    queue.model("there")
    queue.add(model="there")

    assert drain(queue, ["here"]) == {("there", "its model is paused or not served here"): 1}


def test_a_pool_that_nobody_serves_is_named(queue: Queue) -> None:
    queue.model("m", 0)
    queue.add()

    assert drain(queue) == {("", "no model can take it"): 1}


def test_quarantined_tasks_do_not_hold_a_drain(queue: Queue) -> None:
    queue.model("m")
    (key,) = queue.add()
    queue.rows("select llmqueue_internal.quarantine(%s, 'claim', 'theirs')", key)

    assert drain(queue) == {("", "quarantined"): 1}


def pool(queue: Queue, name: str, *models: str) -> None:
    for model in models:
        queue.rows("insert into llmqueue.pool_member (pool, model) values (%s, %s)", name, model)


def test_it_waits_for_a_pool_with_a_model_that_can_take_it(queue: Queue) -> None:
    queue.model("m")
    queue.model("off", enabled=False)
    pool(queue, "fast", "m", "off")
    queue.add(model="fast")

    assert drain(queue) == {None: "waits"}
    assert drain(queue, ["m"]) == {None: "waits"}
    assert drain(queue, ["off"]) == {("fast", "no model of its pool can take it"): 1}


def test_a_model_without_weight_is_no_part_of_the_default_pool(queue: Queue) -> None:
    queue.model("m", weight=0)
    queue.add()
    assert drain(queue) == {("", "no model can take it"): 1}

    queue.add(model="m")
    assert drain(queue) == {None: "waits"}


def test_a_closed_model_will_open_and_a_limit_of_0_will_not_rise(queue: Queue) -> None:
    queue.model("closed")
    queue.rows(
        "insert into llmqueue.model_state (model, cooldown_started_at, cooldown_until)"
        " values ('closed', now(), now() + '1 day')"
    )
    queue.add(model="closed")
    assert drain(queue) == {None: "waits"}

    for column in ("tpm", "rpd", "tpd"):
        queue.model("closed", **{"tpm": None, "rpd": None, "tpd": None, column: 0})
        assert drain(queue) == {("closed", "its model is paused or not served here"): 1}
