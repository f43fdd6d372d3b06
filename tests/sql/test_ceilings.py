"""Learned limits: fewer calls per minute after a 429, fewer at a time after a 503 or 529; and the wake-up signal."""

from __future__ import annotations

from typing import Any

import psycopg
import pytest

from tests.sql.test_wake_up import heard, listening
from tests.support.flow import Flow, refused
from tests.support.sql import Queue, retry


def ready(queue: Queue, how_many: int = 2000, **columns: Any) -> Flow:
    queue.model("m", **{"rpm": 600, **columns})
    queue.add(how_many)
    return Flow(queue)


def rpm(queue: Queue, configured: int = 600) -> int:
    return int(queue.value("select llmqueue_internal.effective_rpm('m', %s, %s)", configured, queue.now))


def concurrency(queue: Queue, configured: int | None = None) -> int | None:
    (found,) = queue.values("select llmqueue_internal.effective_concurrency('m', %s, %s)", configured, queue.now)
    return None if found is None else int(found)


def refuse(queue: Queue, flow: Flow, refusal: str = "quota", pause_s: float | None = 1.0) -> None:
    """Gives the refusal to the last call, then ends the model's cooldown."""
    queue.settle(refused(flow.grants[-1][1], refusal, pause_s))
    queue.value("select llmqueue.end_cooldown('m')")


def test_without_a_refusal_the_ceiling_is_what_is_configured(queue: Queue) -> None:
    ready(queue).run(60)

    assert (rpm(queue), concurrency(queue), concurrency(queue, 7)) == (600, None, 7)


def test_a_429_lowers_the_calls_per_minute_to_four_fifths_of_the_last_one(queue: Queue) -> None:
    flow = ready(queue)
    flow.run(65)
    used = queue.value("select calls from llmqueue_internal.count_60s('m', %s)", queue.now)
    assert 580 <= used <= 600

    refuse(queue, flow)

    assert rpm(queue) == pytest.approx(0.8 * used, abs=1)
    assert concurrency(queue) is None


def test_a_cut_is_never_by_more_than_half(queue: Queue) -> None:
    flow = ready(queue, rpm=64)
    for _ in range(6):
        taken = len(flow.grants)
        while len(flow.grants) == taken:
            flow.run(flow.now_s + 2)
        was = rpm(queue, 64)
        refuse(queue, flow)
        assert was // 2 <= rpm(queue, 64) <= 0.8 * was
    assert rpm(queue, 64) < 20


def test_it_rises_by_a_twentieth_of_the_configured_a_minute_and_never_above_it(queue: Queue) -> None:
    flow = ready(queue)
    flow.run(5)
    refuse(queue, flow)
    low = rpm(queue)
    assert low == 300

    found = []
    for _ in range(12):
        queue.advance(60)
        found.append(rpm(queue))

    assert found == [min(600, low + 30 * (n + 1)) for n in range(12)]
    queue.advance(86400)
    assert rpm(queue) == 600
    assert rpm(queue, 100) == 100, "never above what is configured now"


def test_the_grants_obey_it_and_the_attempts_keep_it(queue: Queue) -> None:
    flow = ready(queue)
    flow.run(65)
    refuse(queue, flow)
    before, since = len(flow.grants), flow.now_s
    flow.run(since + 60)

    assert len(flow.grants) - before <= rpm(queue)
    last = queue.attempt(flow.grants[-1][1])
    assert last["rpm"] == 600
    assert 470 <= last["ceiling_rpm"] <= rpm(queue)


def test_a_change_of_rpm_is_not_hidden_by_the_ceiling(queue: Queue) -> None:
    flow = ready(queue)
    flow.run(5)
    refuse(queue, flow)

    queue.model("m", 60)
    assert rpm(queue, 60) == 60


@pytest.mark.parametrize("count", [2, 10, 50])
def test_a_529_lowers_the_calls_at_a_time_and_not_those_per_minute(queue: Queue, count: int) -> None:
    ready(queue, rpm=6000)
    first, *_ = queue.claim(count).grants

    queue.settle(refused(first, "capacity", 1))

    assert rpm(queue, 6000) == 6000
    assert concurrency(queue) == max(1, int(0.7 * count))
    queue.value("select llmqueue.end_cooldown('m')")
    assert queue.claim(10).reasons == {"m": "concurrency"}


def test_it_rises_by_a_twentieth_a_second_and_is_forgotten_after_ten_minutes(queue: Queue) -> None:
    ready(queue)
    queue.rows(
        "insert into llmqueue.model_state (model, concurrency_ceiling, concurrency_cut_at) values ('m', 100, %s)",
        queue.now,
    )
    found = []
    for _ in range(4):
        found.append(concurrency(queue))
        queue.advance(1)
    assert found == [100, 105, 110, 115]
    assert concurrency(queue, 50) == 50
    queue.advance(600)
    assert (concurrency(queue), concurrency(queue, 50)) == (None, 50)


def test_a_small_ceiling_rises_by_one_a_second(queue: Queue) -> None:
    ready(queue)
    queue.settle(refused(queue.claim(1).only, "capacity", 1))

    assert concurrency(queue) == 1
    queue.advance(3)
    assert concurrency(queue) == 4


@pytest.mark.parametrize("refusal", ["quota", "capacity"])
def test_calls_that_were_under_way_cut_once(queue: Queue, refusal: str) -> None:
    ready(queue, rpm=60000)
    grants = queue.claim(100).grants
    queue.settle(refused(grants[0], refusal, 5))
    cut = queue.rows("select rpm_ceiling, concurrency_ceiling from llmqueue.model_state")

    queue.advance(1)
    queue.settle(*[refused(grant, refusal, 5) for grant in grants[1:]])

    assert queue.rows("select rpm_ceiling, concurrency_ceiling from llmqueue.model_state") == cut


def test_wrong_credentials_close_the_model_and_teach_nothing(queue: Queue) -> None:
    flow = ready(queue)
    flow.run(1)
    item = {**refused(flow.grants[-1][1]), "refusal": "credentials", "pause_s": 60, "error_class": "unauthorized"}

    queue.settle(item)

    assert queue.claim(1).reasons == {"m": "cooldown"}
    assert (rpm(queue), concurrency(queue)) == (600, None)
    (because,) = queue.values("select cooldown_reason from llmqueue.model_state")
    assert because.startswith("unauthorized")


def test_other_failures_close_nothing(queue: Queue) -> None:
    flow = ready(queue)
    flow.run(1)

    queue.settle(retry(flow.grants[-1][1]))

    assert queue.values("select cooldown_until from llmqueue.model_state where cooldown_until is not null") == []
    assert queue.claim(1).reasons != {"m": "cooldown"}


@pytest.mark.parametrize("how", ["probe", "by hand"])
def test_the_end_of_a_cooldown_sends_a_wake_up_signal(conn: psycopg.Connection[Any], installed: str, how: str) -> None:
    queue = Queue(conn)
    queue.model("m", 6000)
    queue.add(3)
    queue.settle(refused(queue.claim(1).only, "quota", 10))
    with listening(installed) as listener:
        if how == "probe":
            queue.advance(10)
            probe = queue.claim(1).only
            assert heard(listener) == []
            queue.complete(probe)
        else:
            assert queue.value("select llmqueue.end_cooldown('m')") is True
        assert heard(listener) == ["config"]
        queue.complete(queue.claim(1).only)
        assert heard(listener) == [], "only when it was closed"


def test_an_operator_opens_a_closed_model_and_the_ceilings_stay(queue: Queue) -> None:
    flow = ready(queue)
    flow.run(5)
    queue.settle(refused(flow.grants[-1][1], "quota", 3600))
    assert queue.claim(10).reasons == {"m": "cooldown"}

    assert queue.value("select llmqueue.end_cooldown('m')") is True

    claimed = queue.claim(10)
    assert claimed.reasons != {"m": "cooldown"}
    assert queue.values("select cooldowns from llmqueue.model_state") == [0]
    assert rpm(queue) == 300


def test_opening_what_is_open_or_unknown_changes_nothing(queue: Queue) -> None:
    ready(queue)

    assert queue.value("select llmqueue.end_cooldown('m')") is False
    assert queue.value("select llmqueue.end_cooldown('nobody')") is False
    assert queue.rows("select * from llmqueue.model_state") == []


def test_a_closing_shows_in_the_models_view(queue: Queue) -> None:
    flow = ready(queue)
    flow.run(5)
    queue.settle(refused(flow.grants[-1][1], "quota", 3600))

    (row,) = queue.rows("select cooldown_until, cooldown_reason, effective_rpm from llmqueue.model_status")
    assert row["cooldown_reason"] == "rate_limited: no more"
    assert row["cooldown_until"] is not None
