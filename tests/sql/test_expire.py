"""expire: tasks that wait past their deadline end, whatever the state of their model; no other task changes."""

from __future__ import annotations

from datetime import timedelta

import pytest

from tests.support.sql import T0, Queue

LATE = T0 - timedelta(seconds=1)


def expire(queue: Queue, limit: int = 500) -> int:
    return int(queue.value("select llmqueue_internal.expire(%s)", limit))


@pytest.mark.parametrize("status", ["unsolved", "delayed"])
def test_a_waiting_task_ends_at_its_deadline_and_not_before(queue: Queue, status: str) -> None:
    (key,) = queue.add(status=status, run_at=T0 + timedelta(hours=2), deadline_at=T0 + timedelta(seconds=5))

    assert expire(queue) == 0
    queue.advance(5)
    assert expire(queue) == 1

    task = queue.task(key)
    assert (task["status"], task["finished_at"]) == ("failed", queue.now)
    assert task["error"] == "expired: deadline_at has passed"
    assert expire(queue) == 0


def test_what_runs_or_has_ended_is_left_alone(queue: Queue) -> None:
    queue.model("m")
    (running,) = queue.add(deadline_at=T0 + timedelta(seconds=1))
    grant = queue.claim(1).only
    ended = [queue.add(status=status, deadline_at=LATE)[0] for status in ("solved", "failed", "cancelled")]
    queue.advance(2)

    assert expire(queue) == 0

    assert [queue.task(key)["status"] for key in (running, *ended)] == ["running", "solved", "failed", "cancelled"]
    assert queue.complete(grant) == "completed"


def test_a_restarted_task_that_is_past_its_deadline_ends_again(queue: Queue) -> None:
    (key,) = queue.add(deadline_at=LATE)
    expire(queue)
    queue.restart(key)

    assert expire(queue) == 1
    assert queue.task(key)["status"] == "failed"


def test_rows_that_cannot_be_ended_are_quarantined_and_do_not_block_the_others(queue: Queue) -> None:
    raising = queue.add(2, prompt="raise", deadline_at=LATE - timedelta(days=1))
    swallowed = queue.add(2, prompt="swallow", status="delayed", deadline_at=LATE - timedelta(days=1))
    (good,) = queue.add(deadline_at=LATE)
    queue.owners_trigger(
        "if new.prompt = 'raise' then raise exception 'no'; end if; if new.prompt = 'swallow' then return null; end if"
    )

    expire(queue, 4)

    assert expire(queue, 4) == 1
    assert queue.task(good)["status"] == "failed"
    assert queue.quarantined() == dict.fromkeys([*raising, *swallowed], "fail_unsent")
