"""llmqueue.cancel: it ends tasks that have not ended, and leaves ended tasks alone."""

from __future__ import annotations

from tests.support.sql import Queue


def test_ready_delayed_and_running_tasks_are_cancelled_and_ended_ones_are_not(queue: Queue) -> None:
    queue.model("m", 60000)
    queue.add(4)
    grants = queue.claim(3).grants
    running, delayed, solved = (grant.id for grant in grants)
    (ready,) = set(queue.values("select id from tasks where status = 'unsolved'"))
    queue.retry(grants[1])
    queue.complete(grants[2])

    assert sorted(queue.cancel(running, delayed, solved, ready, 999_999)) == sorted([running, delayed, ready])

    assert [queue.task(key)["status"] for key in (running, delayed, ready, solved)] == ["cancelled"] * 3 + ["solved"]
    assert queue.task(running)["finished_at"] is not None
    assert queue.claim(10).grants == []


def test_a_cancelled_call_stays_charged_and_counts_as_running_until_it_ends(queue: Queue) -> None:
    queue.model("m", 60000, max_concurrency=1)
    queue.add(2)
    grant = queue.claim(1).only

    queue.cancel(grant.id)

    assert queue.claim(1).reasons == {"m": "concurrency"}
    queue.complete(grant)
    assert len(queue.claim(1).grants) == 1
    assert queue.values("select sum(calls) from llmqueue.ledger_grant") == [2]


def test_a_cancelled_task_leaves_the_quarantine(queue: Queue) -> None:
    queue.model("m")
    (key,) = queue.add()
    queue.rows("select llmqueue_internal.quarantine(%s, 'claim', 'theirs')", key)

    assert queue.cancel(key) == [key]
    assert queue.quarantined() == {}
