"""release and release_unknown_claims: an unsent grant is refunded completely, once, in the charged cell."""

from __future__ import annotations

import pytest

from tests.support.sql import Queue, release


def calls_by_cell(queue: Queue) -> dict[int, int]:
    """Returns what the ledger counts in all cells, including the current one."""
    rows = queue.rows("""
        select cell, sum(calls)::integer as calls from (
            select cell, calls from llmqueue.ledger_cell
            union all
            select cell, calls from llmqueue.ledger_grant g where cell = (select max(cell) from llmqueue.ledger_grant)
        ) x group by cell order by cell""")
    return {row["cell"]: row["calls"] for row in rows}


def test_a_released_task_is_ready_again_with_its_attempt_and_its_grant(queue: Queue) -> None:
    queue.model("m", 60)
    (key,) = queue.add()
    grant = queue.claim(1).only
    queue.advance(1)

    assert queue.release(grant) == "released"

    task = queue.task(key)
    assert (task["status"], task["attempts"], task["run_at"]) == ("unsolved", 0, queue.now)
    attempt = queue.attempt(grant)
    assert (attempt["outcome"], attempt["sent_at"], attempt["error_class"]) == ("released", None, "late_grant")
    assert calls_by_cell(queue) == {attempt["cell"]: 0}
    assert queue.claim(1).only.attempt_no == 1


def test_a_refund_goes_to_the_cell_that_was_charged_and_only_once(queue: Queue) -> None:
    queue.model("m", 6000)
    queue.add(10)
    early = queue.claim(4).grants
    queue.advance(10)
    late = queue.claim(3).grants
    queue.advance(10)
    queue.claim(1)
    cells = [queue.attempt(grants[0])["cell"] for grants in (early, late)]

    for _ in range(3):
        queue.settle(release(early[0]), release(early[1]), release(late[0]))

    found = calls_by_cell(queue)
    assert (found[cells[0]], found[cells[1]]) == (2, 2)


def test_a_refund_lets_another_call_through_at_once(queue: Queue) -> None:
    queue.model("m", 3)
    queue.add(10)
    grants = []
    for _ in range(3):
        grants += queue.claim(1).grants
        queue.advance(19.5)
    assert len(grants) == 3
    assert queue.claim(1).reasons == {"m": "rpm"}

    queue.release(grants[1])

    assert len(queue.claim(1).grants) == 1
    assert queue.claim(1).grants == []


def test_a_swept_attempt_is_never_refunded(queue: Queue) -> None:
    queue.model("m", 60)
    queue.add()
    grant = queue.claim(1).only
    queue.lose(grant)

    assert queue.release(grant) == "lost"

    assert queue.count("llmqueue.ledger_cell where calls < 0") == 0


def test_the_grant_of_a_cancelled_unsent_task_is_refunded(queue: Queue) -> None:
    queue.model("m", 60)
    queue.add()
    grant = queue.claim(1).only
    queue.cancel(grant.id)

    assert queue.release(grant) == "released"

    assert queue.task(grant.id)["status"] == "cancelled"
    assert sum(calls_by_cell(queue).values()) == 0


@pytest.mark.parametrize("back_s", [2, 30, 59, 61, 90, 200])
@pytest.mark.parametrize("waits_s", [0, 3, 45, 100, 190])
def test_a_refund_of_a_grant_from_before_a_step_back_gives_nothing(queue: Queue, back_s: int, waits_s: int) -> None:
    queue.model("m", 6)
    queue.add(60)
    old = queue.claim(2).grants
    queue.advance(-back_s)
    assert queue.claim(2).grants == []  # sees the step, and fills the ledger
    queue.advance(waits_s)
    queue.settle(*(release(grant) for grant in old))

    granted_at: list[float] = []
    for _ in range(600):
        granted_at += [queue.now.timestamp()] * len(queue.claim(2).grants)
        queue.advance(0.5)

    assert granted_at
    assert max(sum(at - 60.5 < earlier <= at for earlier in granted_at) for at in granted_at) <= 6


def test_claims_that_the_worker_does_not_know_are_released(queue: Queue) -> None:
    queue.model("m", 6000)
    queue.add(3)
    other = queue.register()
    theirs = queue.claim(1, worker=other).only
    known, unknown = queue.claim(2).grants

    assert queue.value("select llmqueue.release_unknown_claims(%s, %s)", queue.worker, [known.fence]) == 1

    assert [queue.task(grant.id)["status"] for grant in (theirs, known, unknown)] == ["running", "running", "unsolved"]
    assert queue.attempt(unknown)["error_class"] == "claim_answer_lost"
    assert sum(calls_by_cell(queue).values()) == 2
    assert queue.value("select llmqueue.release_unknown_claims(%s, %s)", queue.worker, [known.fence]) == 0
