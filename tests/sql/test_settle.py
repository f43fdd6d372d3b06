"""llmqueue.settle: every attempt ends once, no answer that was paid for is lost, a late answer overwrites nothing."""

from __future__ import annotations

from datetime import timedelta
from uuid import uuid4

import pytest

from tests.support.sql import Grant, Queue, complete, release, retry


@pytest.fixture
def grant(queue: Queue) -> Grant:
    queue.model("m", 60000)
    queue.add()
    return queue.claim(1).only


def test_an_answer_is_written_with_all_that_is_known(queue: Queue, grant: Grant) -> None:
    queue.advance(2)

    assert queue.complete(grant, "42") == "completed"

    task, attempt = queue.task(grant.id), queue.attempt(grant)
    assert (task["status"], task["answer"], task["error"], task["finished_at"]) == ("solved", "42", None, queue.now)
    assert (task["input_tokens"], task["output_tokens"], task["attempts"]) == (3, 5, 1)
    assert (attempt["outcome"], attempt["ended_at"], attempt["answer"]) == ("completed", queue.now, None)
    assert (attempt["sent_at"], attempt["latency_s"]) == (attempt["granted_at"] + timedelta(seconds=0.01), 1.5)
    assert (attempt["input_tokens"], attempt["output_tokens"]) == (3, 5)


def test_a_flush_sent_twice_is_harmless_and_reports_the_same(queue: Queue, grant: Grant) -> None:
    queue.add(3)
    others = queue.claim(3).grants
    items = [complete(grant, "first"), retry(others[0]), release(others[1]), complete(others[2])]
    once = queue.settle(*items)
    before = queue.rows("select * from llmqueue.task order by id"), queue.rows("select * from llmqueue.ledger_cell")
    queue.advance(1)

    assert queue.settle(*items) == once == ["completed", "retried", "released", "completed"]

    assert before == (
        queue.rows("select * from llmqueue.task order by id"),
        queue.rows("select * from llmqueue.ledger_cell"),
    )


def test_one_fence_twice_in_one_flush_counts_once(queue: Queue, grant: Grant) -> None:
    queue.add()
    other = queue.claim(1).only

    assert queue.settle(complete(grant, "a"), complete(grant, "a"), release(other), release(other)) == [
        "completed",
        "completed",
        "released",
        "released",
    ]

    assert queue.values("select sum(calls) from llmqueue.ledger_cell") == [-1]


def test_late_worker_cannot_complete_a_reclaimed_task(queue: Queue, grant: Grant) -> None:
    queue.lose(grant)
    newer = queue.claim(1).only
    assert newer.id == grant.id
    assert newer.fence > grant.fence

    assert queue.complete(grant, "late") == "late"

    assert queue.task(grant.id)["status"] == "running"
    assert queue.attempt(grant)["answer"] == "late"
    assert queue.complete(newer, "newer") == "completed"
    assert queue.task(grant.id)["answer"] == "newer"


def test_an_answer_of_the_same_workers_earlier_attempt_leaves_the_new_one_running(queue: Queue, grant: Grant) -> None:
    queue.release(grant)
    again = queue.claim(1).only

    assert queue.complete(grant, "of the first") != "completed"

    task = queue.task(grant.id)
    assert (task["status"], task["fence"], task["answer"]) == ("running", again.fence, None)
    assert queue.attempt(again)["ended_at"] is None
    assert queue.complete(again, "of the second") == "completed"
    assert queue.task(grant.id)["answer"] == "of the second"


@pytest.mark.parametrize("verb", ["retry", "bury", "release"])
def test_late_worker_cannot_end_a_reclaimed_task_otherwise(queue: Queue, grant: Grant, verb: str) -> None:
    queue.lose(grant)
    newer = queue.claim(1).only

    assert getattr(queue, verb)(grant) == "lost"

    task = queue.task(grant.id)
    assert (task["status"], task["fence"], task["attempts"]) == ("running", newer.fence, 2)
    assert queue.count("llmqueue.ledger_cell where calls < 0") == 0


def test_a_late_answer_is_accepted_while_nobody_runs_the_task(queue: Queue, grant: Grant) -> None:
    queue.lose(grant)
    assert queue.task(grant.id)["status"] == "unsolved"

    assert queue.complete(grant, "late but paid") == "completed"

    assert (queue.task(grant.id)["status"], queue.task(grant.id)["answer"]) == ("solved", "late but paid")
    assert queue.claim(1).grants == []


def test_a_late_answer_is_accepted_while_the_task_waits_for_a_retry(queue: Queue, grant: Grant) -> None:
    queue.lose(grant)
    queue.retry(queue.claim(1).only, delay_s=60)
    assert queue.task(grant.id)["status"] == "delayed"

    assert queue.complete(grant, "late but paid") == "completed"

    assert queue.task(grant.id)["status"] == "solved"
    queue.advance(100)
    queue.promote()
    assert queue.claim(1).grants == []


@pytest.mark.parametrize("end", ["solved", "failed", "cancelled"])
def test_a_late_answer_overwrites_no_end(queue: Queue, grant: Grant, end: str) -> None:
    queue.lose(grant)
    if end == "solved":
        queue.complete(queue.claim(1).only, "first")
    elif end == "failed":
        queue.bury(queue.claim(1).only)
    else:
        queue.cancel(grant.id)
    before = queue.task(grant.id)

    assert queue.complete(grant, "late") == "late"

    assert queue.task(grant.id) == before
    assert queue.attempt(grant)["answer"] == "late"


def test_the_answer_of_a_cancelled_task_is_kept_in_the_log(queue: Queue, grant: Grant) -> None:
    queue.cancel(grant.id)

    assert queue.complete(grant, "paid") == "late"

    assert (queue.task(grant.id)["status"], queue.task(grant.id)["answer"]) == ("cancelled", None)
    assert queue.attempt(grant)["answer"] == "paid"


@pytest.mark.parametrize("is_lost", [True, False])
@pytest.mark.parametrize("by", ["restart", "plain SQL"])
def test_an_answer_of_an_earlier_life_does_not_end_the_new_one(
    queue: Queue, grant: Grant, by: str, is_lost: bool
) -> None:
    if is_lost:
        queue.lose(grant)
    queue.cancel(grant.id)
    if by == "restart":
        queue.restart(grant.id)
    else:
        queue.rows("update tasks set status = 'unsolved', prompt = 'another question'")

    assert queue.complete(grant, "to the old question") == "late"

    assert (queue.task(grant.id)["status"], queue.task(grant.id)["answer"]) == ("unsolved", None)
    assert queue.attempt(grant)["answer"] == "to the old question"


def test_an_answer_of_an_earlier_life_does_not_end_the_new_one_between_its_attempts(queue: Queue, grant: Grant) -> None:
    queue.lose(grant)
    queue.cancel(grant.id)
    queue.restart(grant.id)
    queue.now = max(queue.now, queue.task(grant.id)["run_at"])
    newer = queue.claim(1).only
    queue.retry(newer, delay_s=60)
    assert queue.task(grant.id)["status"] == "delayed"

    assert queue.complete(grant, "to the old question") == "late"

    assert queue.task(grant.id)["status"] == "delayed"


def test_attempts_count_at_the_claim_and_max_attempts_buries(queue: Queue) -> None:
    queue.model("m", 60000)
    (key,) = queue.add(max_attempts=3)

    seen = []
    for _ in range(3):
        grant = queue.claim(1).only
        seen.append((grant.attempt_no, queue.retry(grant, delay_s=1)))
        queue.advance(2)
        queue.promote()

    assert seen == [(1, "retried"), (2, "retried"), (3, "buried")]
    task = queue.task(key)
    assert (task["status"], task["attempts"], task["error"]) == ("failed", 3, "timeout: no reply")
    assert task["finished_at"] is not None
    assert queue.claim(1).grants == []


def test_five_attempts_are_the_default(queue: Queue) -> None:
    queue.model("m", 60000)
    queue.add()

    outcomes: list[str] = []
    while grants := queue.claim(1).grants:
        outcomes.append(queue.retry(grants[0], delay_s=0))
        queue.promote()

    assert outcomes == ["retried"] * 4 + ["buried"]


def test_a_retry_waits_its_delay(queue: Queue, grant: Grant) -> None:
    assert queue.retry(grant, delay_s=5) == "retried"

    task = queue.task(grant.id)
    assert (task["status"], task["attempts"], task["run_at"]) == ("delayed", 1, queue.now + timedelta(seconds=5))
    queue.advance(4.9)
    assert queue.promote() == 0
    queue.advance(0.1)
    assert queue.promote() == 1
    assert queue.claim(1).only.attempt_no == 2


@pytest.mark.parametrize("delay_s", [1e18, None, -5])
def test_a_nonsensical_delay_still_gives_a_task_that_waits(queue: Queue, grant: Grant, delay_s: float | None) -> None:
    assert queue.retry(grant, delay_s=delay_s) == "retried"

    assert queue.task(grant.id)["status"] == "delayed"
    assert queue.quarantined() == {}


def test_refusals_give_the_attempt_back_until_there_are_20(queue: Queue) -> None:
    queue.model("m", 60000)
    (key,) = queue.add(max_attempts=2)

    outcomes: list[str] = []
    while grants := queue.claim(1).grants:
        assert len(outcomes) < 30
        outcomes.append(queue.retry(grants[0], delay_s=0, counts=False, error_class="rate_limited"))
        queue.promote()

    assert outcomes == ["refused"] * 20 + ["retried", "buried"]
    assert (queue.task(key)["status"], queue.task(key)["attempts"]) == ("failed", 2)


def test_a_restart_counts_refusals_anew(queue: Queue) -> None:
    queue.model("m", 60000)
    (key,) = queue.add(max_attempts=1)
    while grants := queue.claim(1).grants:
        queue.retry(grants[0], delay_s=0, counts=False)
        queue.promote()
    assert queue.task(key)["status"] == "failed"

    queue.restart(key)

    assert queue.retry(queue.claim(1).only, counts=False) == "refused"


def test_a_buried_task_is_a_dead_letter_at_once(queue: Queue, grant: Grant) -> None:
    assert queue.bury(grant) == "buried"

    task = queue.task(grant.id)
    assert (task["status"], task["error"], task["finished_at"]) == ("failed", "rejected: 400", queue.now)
    assert (queue.attempt(grant)["outcome"], queue.attempt(grant)["error_class"]) == ("buried", "rejected")


def test_a_retry_of_a_task_that_has_ended_is_late(queue: Queue, grant: Grant) -> None:
    queue.cancel(grant.id)

    assert queue.retry(grant) == "late"
    assert queue.task(grant.id)["status"] == "cancelled"


def test_a_settlement_of_somebody_elses_fence_does_nothing(queue: Queue, grant: Grant) -> None:
    thief = queue.register()

    assert queue.settle(complete(grant, "stolen"), worker=thief) == ["unknown"]
    assert queue.settle(complete(grant, "stolen"), worker=uuid4()) == ["unknown"]

    assert queue.task(grant.id)["status"] == "running"
    assert queue.attempt(grant)["outcome"] is None


def test_a_settlement_with_another_task_id_does_nothing(queue: Queue, grant: Grant) -> None:
    (other,) = queue.add()

    queue.settle({**complete(grant, "misdirected"), "task_id": str(other)})

    assert queue.task(other)["status"] == "unsolved"
    assert queue.task(grant.id)["status"] == "running"


def test_all_verbs_in_one_flush(queue: Queue) -> None:
    queue.model("m", 60000)
    queue.add(40)
    grants = queue.claim(40).grants
    verbs = [complete, retry, release]

    outcomes = queue.settle(*(verbs[n % 3](grant) for n, grant in enumerate(grants)))

    assert outcomes == [("completed", "retried", "released")[n % 3] for n in range(40)]
    statuses = [queue.task(grant.id)["status"] for grant in grants]
    assert statuses == [("solved", "delayed", "unsolved")[n % 3] for n in range(40)]


def test_an_answer_of_any_text_comes_back_as_it_was(queue: Queue, grant: Grant) -> None:
    answer = "“emoji 🎉\u202eright-to-left\u202c \\u0041 \r\n\t'; drop table tasks; -- " + "x" * 150_000

    assert queue.complete(grant, answer) == "completed"

    assert queue.task(grant.id)["answer"] == answer
