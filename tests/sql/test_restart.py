"""llmqueue.restart and cancel, which operators call."""

from __future__ import annotations

import psycopg
import pytest

from tests.support.sql import Queue


@pytest.mark.parametrize("end", ["complete", "bury", "cancel", "delay"])
def test_an_ended_or_delayed_task_runs_again_with_attempts_counted_anew(queue: Queue, end: str) -> None:
    queue.model("m", 60000)
    (key,) = queue.add(max_attempts=2)
    queue.retry(queue.claim(1).only, delay_s=0)
    queue.promote()
    if end == "cancel":
        queue.cancel(key)
    elif end == "delay":
        queue.rows("update tasks set status = 'delayed', run_at = %s", "2041-01-01 00:00+00")
    else:
        getattr(queue, end)(queue.claim(1).only)

    assert queue.restart(key) == [key]

    assert queue.task(key)["status"] == "unsolved"
    again = queue.claim(1).only
    assert (again.attempt_no, again.restarts) == (1, 1)
    assert queue.task(key)["finished_at"] is None
    assert queue.complete(again, "second life") == "completed"


def test_every_restart_gives_another_idempotency_key(queue: Queue) -> None:
    queue.model("m", 60000)
    (key,) = queue.add()

    seen = []
    for _ in range(3):
        grant = queue.claim(1).only
        seen.append(grant.restarts)
        queue.complete(grant)
        queue.restart(key)

    assert seen == [0, 1, 2]


def test_a_task_that_runs_or_waits_is_left_alone(queue: Queue) -> None:
    queue.model("m")
    running, ready = queue.add(2)
    grant = queue.claim(1).only
    before = queue.rows("select * from llmqueue.task order by id")

    assert queue.restart(running, ready, 999_999) == []

    assert queue.rows("select * from llmqueue.task order by id") == before
    assert queue.complete(grant) == "completed"


def test_a_restart_sends_a_wake_up_signal(shared: str) -> None:
    with psycopg.connect(shared, autocommit=True) as conn:
        conn.execute("listen llmqueue")
        conn.execute("select llmqueue.restart('{}')")

        (wake,) = conn.notifies(timeout=10, stop_after=1)
        assert (wake.channel, wake.payload) == ("llmqueue", "task")
