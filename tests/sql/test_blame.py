"""Failures of the backend consume no attempt, up to a bound; a single task cannot keep a model in cooldown (I11)."""

from __future__ import annotations

import psycopg
import pytest

from tests.support.sql import Grant, Queue, retry


def spared(grant: Grant, **fields: object) -> dict[str, object]:
    """Returns a failure that the worker attributes to the backend."""
    given = {"delay_s": 0, "counts": False, "may_be_backends": True, "error_class": "http_502", "error": "HTTP 502"}
    return retry(grant, **given | fields)


def failed(grant: Grant, **fields: object) -> dict[str, object]:
    """Returns a failure that the worker attributes to the attempt."""
    return spared(grant, counts=True, delay_s=1, **fields)


def of_model(grant: Grant) -> dict[str, object]:
    """Returns a failure that shows the worker that the model is broken."""
    return spared(grant, refusal="failures")


def delay_s(queue: Queue, key: object) -> float:
    assert queue.now is not None
    return float((queue.task(key)["run_at"] - queue.now).total_seconds())


def wait(queue: Queue, key: object) -> None:
    queue.advance(delay_s(queue, key) + 0.001)
    queue.beat()
    queue.promote()


def closed_for_s(queue: Queue) -> float:
    assert queue.now is not None
    until = queue.value("select max(cooldown_until) from llmqueue.model_state where model = 'm'")
    return 0.0 if until is None else float((until - queue.now).total_seconds())


# --- the backend's --------------------------------------------------------------------------------------------------


def test_a_failure_of_the_backend_gives_the_attempt_back_and_keeps_the_charge(queue: Queue) -> None:
    queue.model("m")
    (key,) = queue.add()
    grant = queue.claim(1).only

    assert queue.settle(spared(grant)) == ["refused"]

    task, attempt = queue.task(key), queue.attempt(grant)
    assert (task["status"], task["attempts"]) == ("delayed", 0)
    assert task["error"] == "http_502: HTTP 502"
    assert (attempt["outcome"], attempt["error_class"]) == ("refused", "http_502")
    assert queue.value("select sum(calls) from llmqueue.ledger_grant") == 1, "the call was made, and stays charged"
    assert queue.value("select count(*) from llmqueue.model_state where cooldown_until is not null") == 0


def test_one_task_waits_the_longer_the_more_often_so_that_ten_minutes_of_a_fleets_probes_do_not_bury_it(
    queue: Queue,
) -> None:
    queue.model("m", 60000)
    (key,) = queue.add()
    began, pauses = queue.now, []
    assert began is not None

    while (queue.now - began).total_seconds() < 600:
        queue.settle(spared(queue.claim(1).only))
        pauses.append(delay_s(queue, key))
        wait(queue, key)

    assert queue.task(key)["attempts"] == 0
    for times, pause in enumerate(pauses):
        assert min(120, 2.0**times) / 2 <= pause <= min(120, 2.0**times)


def test_a_task_that_always_fails_ends_as_a_dead_letter_even_if_it_is_always_spared(queue: Queue) -> None:
    queue.model("m", 60000)
    (key,) = queue.add()

    calls = 0
    while queue.task(key)["status"] != "failed":
        queue.settle(spared(queue.claim(1).only))
        calls += 1
        wait(queue, key)

    assert calls == 20 + 5
    assert queue.task(key)["attempts"] == 5


# --- what was counted before it was known ---------------------------------------------------------------------------


def restore_attempts(queue: Queue, *grants: Grant) -> list[int]:
    return list(
        queue.value("select llmqueue.restore_attempts(%s, %s)", queue.worker, [grant.fence for grant in grants])
    )


def test_a_restored_attempt_is_given_back_once(queue: Queue) -> None:
    queue.model("m")
    (key,) = queue.add()
    grant = queue.claim(1).only
    queue.settle(failed(grant))
    assert queue.task(key)["attempts"] == 1

    for _ in range(2):
        assert restore_attempts(queue, grant) == []

        assert queue.task(key)["attempts"] == 0
        assert queue.task(key)["status"] == "delayed"
        assert queue.attempt(grant)["outcome"] == "refused"


@pytest.mark.parametrize("order", [1, -1])
def test_two_failures_of_one_task_give_two_attempts_back(queue: Queue, order: int) -> None:
    queue.model("m")
    (key,) = queue.add(max_attempts=2)
    grants = []
    for _ in range(2):
        grants.append(queue.claim(1).only)
        queue.settle(failed(grants[-1]))
        if queue.task(key)["status"] != "failed":
            wait(queue, key)
    assert (queue.task(key)["status"], queue.task(key)["attempts"]) == ("failed", 2)

    restore_attempts(queue, *grants[::order])

    assert (queue.task(key)["status"], queue.task(key)["attempts"]) == ("delayed", 0)


def test_a_task_that_was_buried_for_it_waits_again(queue: Queue) -> None:
    queue.model("m")
    (key,) = queue.add(max_attempts=1)
    grant = queue.claim(1).only
    assert queue.settle(failed(grant)) == ["buried"]

    restore_attempts(queue, grant)

    task = queue.task(key)
    assert (task["status"], task["attempts"], task["finished_at"]) == ("delayed", 0, None)
    wait(queue, key)
    assert queue.complete(queue.claim(1).only) == "completed"


def test_an_attempt_is_not_restored_once_a_later_one_is_lost_whose_answer_may_come(queue: Queue) -> None:
    queue.model("m")
    (key,) = queue.add()
    first = queue.claim(1).only
    queue.settle(failed(first))
    wait(queue, key)
    lost = queue.claim(1).only
    queue.rows("update llmqueue.attempt set ended_at = granted_at, outcome = 'lost' where fence = %s", lost.fence)
    queue.rows("update llmqueue.task set status = 'unsolved' where id = %s", key)

    restore_attempts(queue, first)
    queue.settle(failed(queue.claim(1).only))

    assert queue.complete(lost, "paid for") == "completed"
    assert queue.task(key)["answer"] == "paid for"


def test_a_task_that_somebody_failed_by_hand_stays_failed(queue: Queue) -> None:
    queue.model("m")
    (key,) = queue.add()
    grant = queue.claim(1).only
    queue.settle(failed(grant))
    queue.rows("update llmqueue.task set status = 'failed' where id = %s", key)

    restore_attempts(queue, grant)

    assert queue.task(key)["status"] == "failed"


def test_a_newer_attempt_that_runs_is_not_disturbed(queue: Queue) -> None:
    queue.model("m")
    (key,) = queue.add()
    first = queue.claim(1).only
    queue.settle(failed(first))
    wait(queue, key)
    second = queue.claim(1).only

    restore_attempts(queue, first)

    task = queue.task(key)
    assert (task["status"], task["fence"], task["attempts"]) == ("running", second.fence, 1)
    assert queue.complete(second) == "completed"


def test_an_end_that_is_not_written_yet_is_to_be_asked_for_again(queue: Queue) -> None:
    queue.model("m")
    queue.add()
    grant = queue.claim(1).only

    assert restore_attempts(queue, grant) == [grant.fence]
    queue.settle(failed(grant))
    assert restore_attempts(queue, grant) == []


@pytest.mark.parametrize("end", ["complete", "bury by hand", "restart", "another worker"])
def test_nothing_else_is_changed_by_forgiving(queue: Queue, end: str) -> None:
    queue.model("m")
    (key,) = queue.add(max_attempts=1 if end == "restart" else 5)
    grant = queue.claim(1).only
    if end == "complete":
        queue.complete(grant)
    else:
        queue.settle(failed(grant))
    if end == "bury by hand":
        queue.rows("update tasks set status = 'failed', finished_at = now(), fence = fence + 1000 where id = %s", key)
    if end == "restart":
        queue.restart(key)
    if end == "another worker":
        queue.worker = queue.register()
    before = queue.task(key)

    assert restore_attempts(queue, grant) == []

    assert queue.task(key) == before


def test_a_row_that_somebody_holds_is_asked_for_again(installed: str) -> None:
    with psycopg.connect(installed, autocommit=True) as conn, psycopg.connect(installed) as other:
        queue = Queue(conn, now=None)
        queue.model("m")
        (key,) = queue.add()
        grant = queue.claim(1).only
        queue.settle(failed(grant))
        other.execute("select from tasks where id = %s for update", (key,))

        assert queue.value("select llmqueue.restore_attempts(%s, %s)", queue.worker, [grant.fence]) == [grant.fence]

        other.rollback()
        assert queue.value("select llmqueue.restore_attempts(%s, %s)", queue.worker, [grant.fence]) == []
        assert queue.task(key)["attempts"] == 0


# --- the model's ----------------------------------------------------------------------------------------------------


def test_a_broken_model_is_closed_for_the_fleet_and_nothing_of_it_is_lowered(queue: Queue) -> None:
    queue.model("m", 6000, max_concurrency=100)
    queue.add(10)
    grant = queue.claim(1).only

    queue.settle(of_model(grant))

    assert 1.5 <= closed_for_s(queue) <= 2.5
    assert queue.claim(10, worker=queue.register()).reasons == {"m": "cooldown"}
    assert queue.task(grant.id)["attempts"] == 0
    (state,) = queue.rows("select * from llmqueue.model_state")
    assert (state["rpm_ceiling"], state["concurrency_ceiling"]) == (None, None)
    assert state["cooldown_reason"] == "http_502: HTTP 502"


def test_a_probe_that_fails_closes_it_again_whoever_made_it(queue: Queue) -> None:
    queue.model("m", 6000)
    queue.add(10)
    queue.settle(of_model(queue.claim(1).only))
    queue.advance(closed_for_s(queue))
    queue.worker = queue.register()  # which knows nothing of the failures before
    probe = queue.claim(10).only

    assert queue.settle(failed(probe)) == ["refused"]

    assert 3 <= closed_for_s(queue) <= 5, "twice the first pause, a quarter more or less"
    assert queue.task(probe.id)["attempts"] == 0
    queue.advance(closed_for_s(queue))
    queue.complete(queue.claim(10).only)
    assert closed_for_s(queue) == 0


def test_a_probe_that_fails_by_its_own_fault_opens_the_model(queue: Queue) -> None:
    queue.model("m", 6000)
    queue.add(10)
    queue.settle(of_model(queue.claim(1).only))
    queue.advance(closed_for_s(queue))
    probe = queue.claim(10).only

    assert queue.settle(retry(probe, error_class="unreadable_reply", counts=True)) == ["retried"]

    assert closed_for_s(queue) == 0
    assert queue.task(probe.id)["attempts"] == 1


def test_a_probe_that_fails_by_the_backends_fault_opens_nothing(queue: Queue) -> None:
    queue.model("m", 6000)
    queue.add(10)
    queue.settle(of_model(queue.claim(1).only))
    queue.advance(closed_for_s(queue))
    probe = queue.claim(10).only

    assert queue.settle(spared(probe)) == ["refused"]

    assert queue.values("select cooldowns from llmqueue.model_state") == [1]
    queue.advance(0.1)
    assert queue.claim(10).only.id != probe.id, "one call again, not ten: it is not known to be back"


def test_a_task_that_always_fails_cannot_close_its_model_for_ever(queue: Queue) -> None:
    queue.model("m", 60000)
    (poison,) = queue.add(priority=50)  # always first in line
    queue.add(200)
    cooldowns = 0

    for _ in range(400):
        if queue.task(poison)["status"] == "failed":
            break
        before = closed_for_s(queue)
        for grant in queue.claim(20).grants:
            is_poison = grant.id == poison
            queue.settle(of_model(grant) if is_poison else {"verb": "complete", "fence": grant.fence,
                "task_id": str(grant.id), "answer": "a", "sent_after_s": 0.01, "latency_s": 1.0})  # fmt: skip
            cooldowns += is_poison and closed_for_s(queue) > before
        queue.advance(max(5.0, closed_for_s(queue)))
        queue.beat()
        queue.promote()

    assert queue.task(poison)["status"] == "failed"
    # After the third it waits by itself, once somebody else was the probe: drawn in SQL. It would be 20 otherwise.
    assert cooldowns <= 8
    assert queue.value("select count(*) from tasks where status = 'solved'") == 200
