"""calibrate: how the usage of answers changes the estimates of prompts and answers, and the reserved tokens."""

from __future__ import annotations

from typing import Any

import psycopg
import pytest

from tests.support.flow import answered
from tests.support.sql import Queue

PROMPT = "p" * 368  # taken for 100 tokens


def ready(queue: Queue, how_many: int, **columns: Any) -> None:
    queue.model("m", **{"rpm": 60000, "tpm": 10_000_000, "token_mode": "actual", "max_output": 1000, **columns})
    queue.add(how_many, prompt=PROMPT)


def answer(queue: Queue, usages: list[tuple[int | None, int | None]], char_class_estimate: int | None = None) -> None:
    for usage in usages:
        grant = queue.claim(1).only
        queue.settle(answered(grant, *usage, char_class_estimate=char_class_estimate))


def calibrate(queue: Queue) -> int:
    return int(queue.value("select llmqueue_internal.calibrate()"))


def learned(queue: Queue) -> dict[str, Any]:
    (row,) = queue.rows("select * from llmqueue.model_state where model = 'm'")
    return row


def test_nineteen_answers_say_nothing_and_twenty_do(queue: Queue) -> None:
    ready(queue, 21)
    answer(queue, [(150, 40)] * 19)
    assert calibrate(queue) == 0
    assert queue.claim(1).only.tokens == 100 + 1000

    answer(queue, [(150, 40)])
    assert calibrate(queue) == 1
    assert (learned(queue)["samples"], learned(queue)["calibrated_at"]) == (20, queue.now)


def test_mean_and_95th_percentile_of_used_over_estimated_are_kept(queue: Queue) -> None:
    ready(queue, 21)
    answer(queue, [(10 * n or 1, 20 * n) for n in range(21)], char_class_estimate=50)

    calibrate(queue)

    state = learned(queue)
    assert state["bytes_ratio_mean"] == pytest.approx(1.0, abs=0.01)
    assert state["bytes_ratio_p95"] == pytest.approx(1.9)
    assert state["char_class_ratio_mean"] == pytest.approx(2.0, abs=0.01)
    assert state["char_class_ratio_p95"] == pytest.approx(3.8)
    assert state["output_mean"] == pytest.approx(200)
    assert state["output_sd"] == pytest.approx(124.1, abs=0.1)


@pytest.mark.parametrize(
    ("mode", "ratio"), [("actual", 1.0), ("input", 1.9), ("sum", 1.9), ("max", 1.9), ("split", 1.9)]
)
def test_the_mean_is_reserved_where_the_sum_counts_and_the_95th_percentile_elsewhere(
    queue: Queue, mode: str, ratio: float
) -> None:
    ready(queue, 22, token_mode=mode)
    answer(queue, [(10 * n or 1, 20) for n in range(21)])
    calibrate(queue)

    grant = queue.claim(1).only

    attempt = queue.attempt(grant)
    assert (attempt["bytes_estimate"], attempt["input_charge"]) == (100, pytest.approx(100 * ratio, abs=1))


@pytest.mark.parametrize(("mode", "ratio"), [("actual", 2.0), ("sum", 3.8)])
def test_the_worker_is_told_what_its_own_estimate_is_multiplied_by(queue: Queue, mode: str, ratio: float) -> None:
    ready(queue, 23, token_mode=mode)
    query = "select char_class_ratio from llmqueue.claim(%s, null, 1) where (task).task_id is null"
    assert queue.value(query, queue.worker) == 1
    answer(queue, [(10 * n or 1, 20) for n in range(21)], char_class_estimate=50)
    calibrate(queue)

    assert queue.value(query, queue.worker) == pytest.approx(ratio, abs=0.01)


def test_the_margin_is_shared_by_the_calls_in_flight(queue: Queue) -> None:
    ready(queue, 200)
    answer(queue, [(100, 20 * n) for n in range(21)])
    calibrate(queue)
    queue.advance(1)

    reserved = [queue.attempt(queue.claim(1).only)["output_charge"] for _ in range(101)]

    sd = learned(queue)["output_sd"]
    assert [reserved[n] for n in (1, 4, 16, 100)] == [
        pytest.approx(200 + 2 * sd / n**0.5, abs=1) for n in (1, 4, 16, 100)
    ]
    assert reserved[0] == reserved[1], "the first has nobody to share it with"
    assert reserved == sorted(reserved, reverse=True)


def test_what_is_expected_never_exceeds_what_the_task_allows(queue: Queue) -> None:
    ready(queue, 20)
    answer(queue, [(100, 500)] * 20)
    calibrate(queue)
    queue.add(prompt=PROMPT, params='{"max_tokens": 30}')
    queue.model("m", max_output=400)
    queue.add(prompt=PROMPT)

    assert [queue.attempt(queue.claim(1).only)["output_charge"] for _ in range(2)] == [30, 400]


@pytest.mark.parametrize("mode", ["sum", "max"])
def test_a_providers_own_rule_is_not_replaced_by_what_is_expected(queue: Queue, mode: str) -> None:
    ready(queue, 21, token_mode=mode)
    answer(queue, [(100, 5)] * 20)
    calibrate(queue)

    assert queue.attempt(queue.claim(1).only)["output_charge"] == 1000


def test_only_answers_with_usage_teach(queue: Queue) -> None:
    ready(queue, 70)
    answer(queue, [(None, None), (100, None), (None, 5)] * 10)
    for _ in range(20):
        queue.bury(queue.claim(1).only)

    assert calibrate(queue) == 0


def test_the_last_thousand_answers_count(queue: Queue) -> None:
    ready(queue, 0)
    queue.rows(
        """insert into llmqueue.attempt (fence, task_id, model, worker, attempt_no, granted_at, cell, rpm,
                                         bytes_estimate, input_tokens, output_tokens, outcome, ended_at)
           select n, n, 'm', %s, 1, %s, 0, 1, 100, case when n <= 500 then 900 else 200 end, 7, 'completed', %s
             from generate_series(1, 1500) n""",
        queue.worker,
        queue.now,
        queue.now,
    )
    calibrate(queue)

    assert (learned(queue)["samples"], learned(queue)["bytes_ratio_mean"]) == (1000, pytest.approx(2.0))


def test_each_model_learns_from_its_own(queue: Queue) -> None:
    ready(queue, 0)
    queue.model("n", 60000, tpm=10_000_000, token_mode="actual")
    for name, used in (("m", 150), ("n", 50)):
        queue.add(20, prompt=PROMPT, model=name)
        for grant in queue.claim(20, [name]).grants:
            queue.settle(answered(grant, used, 5))

    assert calibrate(queue) == 2
    ratios = queue.values("select bytes_ratio_mean from llmqueue.model_state order by model")
    assert ratios == [pytest.approx(1.5), pytest.approx(0.5)]


def test_it_rides_along_with_a_claim_and_without_limits_on_tokens_does_nothing(queue: Queue) -> None:
    ready(queue, 21)
    answer(queue, [(150, 40)] * 20)
    queue.model("m", tpm=None)
    queue.claim(0, maintenance=["calibrate"])
    assert queue.values("select samples from llmqueue.model_state") == []

    queue.model("m", tpm=1000000)
    queue.claim(0, maintenance=["calibrate"])
    assert queue.values("select samples from llmqueue.model_state") == [20]


def test_it_keeps_what_else_is_known_of_a_model(queue: Queue) -> None:
    ready(queue, 20)
    queue.rows("insert into llmqueue.model_state (model, cooldowns, rpm_ceiling) values ('m', 3, 50000)")
    answer(queue, [(150, 40)] * 20)

    calibrate(queue)

    assert (learned(queue)["cooldowns"], learned(queue)["rpm_ceiling"], learned(queue)["samples"]) == (3, 50000, 20)


def test_one_worker_at_a_time_is_enough(conn: psycopg.Connection[Any], installed: str) -> None:
    queue = Queue(conn)
    ready(queue, 20)
    answer(queue, [(150, 40)] * 20)
    with psycopg.connect(installed) as other:
        other.execute("select llmqueue_internal.calibrate()")

        assert calibrate(queue) == 0

    assert calibrate(queue) == 1
