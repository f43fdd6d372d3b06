"""The limiter's arithmetic, case by case; tests/properties/test_limiter.py compares it with a brute-force log."""

from __future__ import annotations

import pytest

from tests.support.sql import Queue


def take(queue: Queue, wanted: int = 1000) -> int:
    return len(queue.claim(wanted).grants)


def test_a_fresh_model_starts_with_two_calls_or_a_seconds_worth(queue: Queue) -> None:
    queue.add(300)
    for name, rpm, burst in (("slow", 6, 2), ("mid", 120, 2), ("fast", 6000, 100)):
        queue.model(name, rpm)
        assert len(queue.claim(1000, [name]).grants) == burst


def test_the_bucket_refills_at_the_rate_and_faster_while_the_window_lags_behind(queue: Queue) -> None:
    queue.model("m", 6000)
    queue.add(600)
    assert take(queue) == 100

    queue.advance(0.5)
    assert take(queue) == 50  # ahead of an even flow, by the burst
    queue.advance(10)
    assert take(queue) == 100
    queue.advance(0.5)
    assert take(queue) == 75  # by seconds behind it


def test_the_bucket_refills_the_faster_the_further_the_window_lags_behind(queue: Queue) -> None:
    queue.model("m", 6000)
    queue.add(600)
    assert take(queue) == 100

    queue.advance(1.5)
    assert len(queue.claim(40).grants) == 40  # 60 are left
    queue.advance(0.1)
    assert take(queue) == 71  # less than 0.2 s behind


def test_a_window_and_its_guard_hold_at_the_microsecond(queue: Queue) -> None:
    queue.model("m", 2)
    queue.add(10)
    assert take(queue) == 2

    queue.advance(60.5)
    assert take(queue) == 0  # the whole cell counts
    queue.advance(0.25 - 1e-6)
    assert take(queue) == 0
    queue.advance(1e-6)
    assert take(queue) == 2


def test_a_grant_at_the_last_microsecond_of_its_cell_counts_for_a_whole_window(queue: Queue) -> None:
    queue.model("m", 1)
    queue.add(10)
    queue.advance(0.25 - 1e-6)
    assert take(queue) == 1

    queue.advance(60.5)
    assert take(queue) == 0
    queue.advance(1e-6)
    assert take(queue) == 1


def test_idle_then_a_burst_at_the_end_of_a_minute_gets_no_second_one(queue: Queue) -> None:
    queue.model("m", 60)
    queue.add(300)
    queue.advance(59.9)

    granted = []
    for _ in range(130 * 10):
        granted += [queue.now.timestamp()] * take(queue, 5)
        queue.advance(0.1)

    assert max(sum(at - 60 < earlier <= at for earlier in granted) for at in granted) == 60
    assert len(granted) >= 120


@pytest.mark.parametrize("rpm", [1, 2, 3])
def test_the_smallest_limits_hold(queue: Queue, rpm: int) -> None:
    queue.model("m", rpm)
    queue.add(20)

    granted = []
    for _ in range(60 * 5 * 2):
        granted += [queue.now.timestamp()] * take(queue)
        queue.advance(0.5)

    assert max(sum(at - 60 < earlier <= at for earlier in granted) for at in granted) == rpm
    assert len(granted) >= rpm * 4


def test_a_lowered_limit_holds_from_the_next_grant_and_a_raised_one_too(queue: Queue) -> None:
    queue.model("m", 600)
    queue.add(1000)
    taken = 0
    for _ in range(30):
        taken += take(queue)
        queue.advance(1)
    assert taken >= 300

    queue.model("m", 60)
    for _ in range(30):
        assert take(queue) == 0
        queue.advance(1)
    queue.model("m", 6000)
    assert take(queue) == 100


def test_the_rpm_at_the_grant_is_kept_with_the_attempt(queue: Queue) -> None:
    queue.model("m", 600)
    queue.add(2)
    first = queue.claim(1).only
    queue.model("m", 60)
    second = queue.claim(1).only

    assert (queue.attempt(first)["rpm"], queue.attempt(second)["rpm"]) == (600, 60)


def test_the_largest_rpm_is_no_problem(queue: Queue) -> None:
    queue.model("m", 6_000_000)
    queue.add(600)

    assert take(queue, 500) == 500
    queue.advance(0.001)
    assert take(queue, 500) == 100


def test_a_step_back_of_up_to_a_second_is_held(queue: Queue) -> None:
    queue.model("m", 60000)
    queue.add(30)
    assert take(queue, 10) == 10

    queue.advance(-1)
    assert take(queue, 10) == 10

    assert queue.values("select count(distinct granted_at) from llmqueue.attempt") == [1]


def test_a_larger_step_back_costs_one_quiet_window_and_no_more(queue: Queue) -> None:
    queue.model("m", 60000)
    queue.add(30)
    assert take(queue, 10) == 10

    queue.advance(-1800)
    claimed = queue.claim(10)
    assert (claimed.grants, claimed.reasons) == ([], {"m": "rpm"})
    assert 60 < claimed.retry_in_s["m"] < 61
    queue.advance(claimed.retry_in_s["m"])
    assert take(queue, 10) == 10


def test_a_seen_step_forward_closes_every_model_for_a_window(queue: Queue) -> None:
    for name in ("a", "b"):
        queue.model(name, 600)
    queue.add(30)
    queue.advance(3600)

    queue.rows("select llmqueue.clock_stepped()")

    claimed = queue.claim(10)
    assert (claimed.grants, claimed.reasons) == ([], {"a": "rpm", "b": "rpm"})
    queue.advance(60.75)
    assert len(queue.claim(4).grants) == 4


def test_a_model_never_asked_before_survives_a_step(queue: Queue) -> None:
    queue.model("m", 600)
    queue.rows("select llmqueue.clock_stepped()")
    queue.rows("select llmqueue.clock_stepped()")
    queue.add()

    assert queue.claim(1).reasons == {"m": "rpm"}


def test_two_models_do_not_share_a_ledger(queue: Queue) -> None:
    queue.model("a", 2)
    queue.model("b", 2)
    queue.add(4)

    assert {grant.model for grant in queue.claim(10).grants} == {"a", "b"}
    assert queue.claim(10).reasons == {"a": "empty", "b": "empty"}


def test_the_views_count_what_the_limiter_counts(queue: Queue) -> None:
    queue.model("m", 600)
    queue.add(100)
    total = 0
    for _ in range(20):
        total += take(queue, 2)
        queue.advance(1)

    assert queue.value("select calls from llmqueue_internal.count_60s('m', %s)", queue.now) == total
    queue.rows("select llmqueue.clock_stepped()")
    assert queue.value("select calls from llmqueue_internal.count_60s('m', %s)", queue.now) <= total
