"""on_crash = 'park': a call that may have been paid for is not repeated, and its late answer is accepted (I8)."""

from __future__ import annotations

import json
from typing import Any
from uuid import UUID

import psycopg
import pytest

from tests.support.cli import run_cli
from tests.support.sql import Grant, Queue, complete, release, retry


def die(queue: Queue) -> UUID:
    """Lets the lease of the queue's worker run out and returns one that may sweep."""
    sweeper = queue.register()
    for _ in range(5):
        queue.advance(10)
        queue.beat(sweeper)
    return sweeper


def lost(queue: Queue, **task: Any) -> Grant:
    """An attempt whose worker died, swept."""
    queue.add(**task)
    grant = queue.claim(1).only
    assert queue.sweep(die(queue)) == 1
    return grant


@pytest.fixture
def parking(queue: Queue) -> Queue:
    queue.model("m", 6000, on_crash="park")
    return queue


def test_a_task_of_a_dead_worker_is_a_dead_letter_with_a_class_of_its_own(parking: Queue) -> None:
    grant = lost(parking)

    task, attempt = parking.task(grant.id), parking.attempt(grant)
    assert (task["status"], task["finished_at"], task["attempts"]) == ("failed", parking.now, 1)
    assert task["error"].startswith("outcome_unknown: ")
    assert (attempt["outcome"], attempt["error_class"]) == ("lost", "outcome_unknown")
    (letter,) = parking.rows("select * from llmqueue.dead_letters")
    assert (letter["task_id"], letter["error_class"]) == (grant.id, "outcome_unknown")


def test_by_default_it_runs_again(queue: Queue) -> None:
    queue.model("m", 6000)

    grant = lost(queue)

    assert queue.task(grant.id)["status"] == "unsolved"
    assert queue.attempt(grant)["error_class"] is None


def test_only_the_tasks_of_that_model_are_parked(queue: Queue) -> None:
    queue.model("m", 6000, on_crash="park")
    queue.model("n", 6000)
    (parked,), (other,) = queue.add(model="m"), queue.add(model="n")
    queue.claim(2)

    queue.sweep(die(queue))

    assert (queue.task(parked)["status"], queue.task(other)["status"]) == ("failed", "unsolved")


def test_its_late_answer_is_written_and_reconciled(parking: Queue) -> None:
    parking.model("m", 6000, on_crash="park", tpm=100_000)
    grant = lost(parking)

    assert parking.complete(grant) == "completed"

    task, attempt = parking.task(grant.id), parking.attempt(grant)
    assert (task["status"], task["answer"], task["error"]) == ("solved", "because", None)
    assert (attempt["outcome"], attempt["error_class"], attempt["answer"]) == ("completed", None, None)
    assert attempt["tokens_final"] is not None


def test_a_restart_by_hand_ends_that_welcome(parking: Queue) -> None:
    grant = lost(parking)
    parking.restart(grant.id)
    parking.worker = parking.register()
    newer = parking.claim(1).only

    assert parking.complete(grant) == "late"

    assert parking.task(grant.id)["status"] == "running"
    assert parking.attempt(grant)["answer"] == "because"
    assert parking.complete(newer, "again") == "completed"
    assert parking.task(grant.id)["answer"] == "again"


def test_a_dead_letter_of_another_reason_takes_no_late_answer(queue: Queue) -> None:
    queue.model("m", 6000)
    grant = lost(queue, max_attempts=1)
    assert queue.task(grant.id)["status"] == "failed"

    assert queue.complete(grant) == "late"


def test_a_worker_that_stops_after_it_has_sent_parks_its_task(parking: Queue) -> None:
    parking.add(2)
    sent, unsent = parking.claim(2).grants

    stopped = retry(sent, error_class="worker_stopped", error="the worker stopped", delay_s=0)
    assert parking.settle(stopped, release(unsent)) == ["buried", "released"]

    assert parking.task(sent.id)["status"] == "failed"
    assert parking.task(sent.id)["error"].startswith("outcome_unknown: ")
    assert parking.attempt(sent)["error_class"] == "outcome_unknown"
    assert parking.task(unsent.id)["status"] == "unsolved", "what is known to be unsent is never parked"


def test_failures_that_are_no_crash_are_retried_as_ever(parking: Queue) -> None:
    parking.add()
    grant = parking.claim(1).only

    assert parking.settle(retry(grant, error_class="timeout")) == ["retried"]


def test_a_cancelled_task_of_a_dead_worker_stays_cancelled(parking: Queue) -> None:
    parking.add()
    grant = parking.claim(1).only
    parking.cancel(grant.id)

    parking.sweep(die(parking))

    assert parking.task(grant.id)["status"] == "cancelled"


# --- late answers ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("meanwhile", ["a newer attempt runs", "it was cancelled"])
def test_the_usage_of_a_late_answer_is_charged(queue: Queue, meanwhile: str) -> None:
    queue.model("m", 6000, tpm=100_000, token_mode="actual")
    queue.add(prompt="x" * 4000)
    grant = queue.claim(1).only
    charged = queue.attempt(grant)["tokens"]
    if meanwhile == "it was cancelled":
        queue.cancel(grant.id)
    else:
        queue.sweep(die(queue))
        queue.worker = queue.register()
        queue.claim(1)
    before = queue.value("select coalesce(sum(tokens), 0) from llmqueue.ledger_cell where cell = %s",
                         queue.attempt(grant)["cell"])  # fmt: skip

    assert queue.settle({**complete(grant), "input_tokens": 5000, "output_tokens": 700}, worker=grant.worker) == [
        "late"
    ]

    attempt = queue.attempt(grant)
    assert (attempt["tokens_final"], attempt["input_tokens"], attempt["output_tokens"]) == (5700, 5000, 700)
    assert attempt["answer"] == "because"
    after = queue.value("select sum(tokens) from llmqueue.ledger_cell where cell = %s", attempt["cell"])
    assert after - before == 5700 - charged


# --- the command ----------------------------------------------------------------------------------------------------


def test_models_set_takes_it_and_list_shows_it(installed: str) -> None:
    run_cli(installed, "models", "set", "m", "--rpm", "60")

    said = run_cli(installed, "models", "set", "m", "--on-crash", "park")

    assert (said.code, said.out) == (
        0,
        "m: 60 calls per minute, no limit on calls in flight, timeout 10 min, parks calls of dead workers\n",
    )
    (row,) = json.loads(run_cli(installed, "models", "list", "--json").out)
    assert row["on_crash"] == "park"
    assert run_cli(installed, "models", "set", "m", "--on-crash", "drop").code == 2
    with psycopg.connect(installed, autocommit=True) as conn, pytest.raises(psycopg.errors.CheckViolation):
        conn.execute("update llmqueue.model_config set on_crash = 'drop'")
