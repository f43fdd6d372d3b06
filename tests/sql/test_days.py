"""Limits per day: rpd and tpd, since the provider's midnight (day_headroom, day_start, when_free)."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from tests.support.flow import answered
from tests.support.sql import Queue

LOS_ANGELES = "America/Los_Angeles"


def at(queue: Queue, *moment: int) -> None:
    queue.now = datetime(*moment, tzinfo=UTC)  # type: ignore[misc, arg-type]


def left(queue: Queue) -> tuple[int | None, int | None]:
    query = """select llmqueue_internal.day_headroom(c, 'calls', %s) as calls,
                      llmqueue_internal.day_headroom(c, 'tokens', %s) as tokens
                 from llmqueue.model_config c"""
    (row,) = queue.rows(query, queue.now, queue.now)
    return row["calls"], row["tokens"]


@pytest.mark.parametrize(
    ("timezone", "now", "midnight"),
    [
        ("UTC", "2040-06-01T00:00Z", "2040-06-01T00:00Z"),
        ("UTC", "2040-06-01T23:59:59.999999Z", "2040-06-01T00:00Z"),
        (LOS_ANGELES, "2040-06-01T06:59:59Z", "2040-05-31T07:00Z"),
        (LOS_ANGELES, "2040-06-01T07:00Z", "2040-06-01T07:00Z"),
        # the day on which clocks go forward has 23 hours, the one on which they go back 25
        (LOS_ANGELES, "2026-03-08T09:59:59Z", "2026-03-08T08:00Z"),
        (LOS_ANGELES, "2026-03-09T06:59:59Z", "2026-03-08T08:00Z"),
        (LOS_ANGELES, "2026-03-09T07:00Z", "2026-03-09T07:00Z"),
        (LOS_ANGELES, "2026-11-02T07:59:59Z", "2026-11-01T07:00Z"),
        (LOS_ANGELES, "2026-11-02T08:00Z", "2026-11-02T08:00Z"),
        ("Asia/Kathmandu", "2040-06-01T18:15Z", "2040-06-01T18:15Z"),
        ("Pacific/Kiritimati", "2040-06-01T09:59:59Z", "2040-05-31T10:00Z"),
        # no midnight on that day: it begins at one o'clock
        ("America/Santiago", "2026-09-06T12:00Z", "2026-09-06T04:00Z"),
    ],
)
def test_a_day_begins_at_the_last_midnight_there(queue: Queue, timezone: str, now: str, midnight: str) -> None:
    (started,) = queue.values("select llmqueue_internal.day_start(%s, %s)", timezone, now)

    assert started == datetime.fromisoformat(midnight)


def test_a_day_is_used_up_until_its_midnight(queue: Queue) -> None:
    queue.model("m", 60000, rpd=3)
    queue.add(10)

    claimed = queue.claim(10)
    assert (len(claimed.grants), claimed.reasons) == (3, {"m": "day"})
    assert claimed.retry_in_s["m"] == pytest.approx(12 * 3600, abs=0.01)
    queue.advance(12 * 3600 - 0.001)
    assert queue.claim(10).grants == []
    queue.advance(0.001)
    assert len(queue.claim(10).grants) == 3


@pytest.mark.parametrize(
    ("start", "hours"), [((2026, 3, 8, 8), 23), ((2026, 11, 1, 7), 25), ((2026, 6, 1, 7), 24), ((2026, 3, 8, 18), 13)]
)
def test_a_day_on_which_the_clocks_change_ends_at_its_own_midnight(
    queue: Queue, start: tuple[int, ...], hours: int
) -> None:
    queue.model("m", 60000, rpd=2, quota_timezone=LOS_ANGELES)
    queue.add(10, created_at=datetime(2001, 1, 1, tzinfo=UTC))
    at(queue, *start)

    claimed = queue.claim(10)

    assert len(claimed.grants) == 2
    assert claimed.retry_in_s["m"] == pytest.approx(hours * 3600, abs=0.01)
    queue.advance(hours * 3600 - 1)
    assert queue.claim(10).grants == []
    queue.advance(1)
    assert len(queue.claim(10).grants) == 2


def test_the_day_counts_what_went_out_since_midnight_and_no_more(queue: Queue) -> None:
    queue.model("m", 60000, rpd=100)
    queue.add(200)
    at(queue, 2040, 1, 1, 23, 59, 59)
    assert len(queue.claim(30).grants) == 30
    assert left(queue) == (70, None)

    queue.advance(1)
    assert left(queue) == (100, None)
    assert len(queue.claim(30).grants) == 30
    assert left(queue) == (70, None)


def test_tokens_of_the_day_are_charged_and_put_right(queue: Queue) -> None:
    queue.model("m", 60000, tpd=1000, token_mode="actual", max_output=300)
    queue.add(10, prompt="p" * 368)

    first, second = queue.claim(10).grants
    assert left(queue) == (None, 1000 - 2 * 400)
    assert queue.claim(10).reasons == {"m": "day"}
    queue.settle(answered(first, 50, 50), answered(second, 100, 100))

    assert left(queue) == (None, 700)
    assert len(queue.claim(10).grants) == 1


def test_tokens_of_the_day_pause_until_midnight_too(queue: Queue) -> None:
    queue.model("m", 60000, tpd=1000, token_mode="input")
    queue.add(10, prompt="p" * 1968)

    claimed = queue.claim(10)

    assert (len(claimed.grants), claimed.reasons) == (2, {"m": "day"})
    assert claimed.retry_in_s["m"] == pytest.approx(12 * 3600, abs=0.01)


def test_input_and_output_that_are_counted_apart_are_one_day(queue: Queue) -> None:
    queue.model("m", 60000, tpd=1000, output_tpm=60000, token_mode="split", max_output=300)
    queue.add(10, prompt="p" * 368)

    queue.claim(10)

    (_, tokens) = left(queue)
    assert tokens is not None
    assert tokens >= 0


def test_what_alone_is_more_than_a_day_is_dead(queue: Queue) -> None:
    queue.model("m", 60000, tpd=1000, output_tpm=60000, token_mode="split", max_output=950)
    (key,) = queue.add(prompt="p" * 368)

    queue.claim(10)

    assert queue.task(key)["status"] == "failed"


def test_an_unsent_call_costs_nothing_of_the_day(queue: Queue) -> None:
    queue.model("m", 60000, rpd=2, tpd=1000, token_mode="input")
    queue.add(2, prompt="p" * 368)
    (grant, _) = queue.claim(2).grants
    assert left(queue) == (0, 800)

    queue.release(grant)

    assert left(queue) == (1, 900)


def test_the_day_survives_the_pruning_of_its_cells(queue: Queue) -> None:
    queue.model("m", 6000, rpd=1000, tpd=100000, token_mode="input")
    queue.add(300, prompt="p" * 368)
    taken = 0
    for _ in range(60):
        taken += len(queue.claim(5).grants)
        queue.advance(10)
        queue.rows("select llmqueue_internal.prune_ledger()")
        assert left(queue) == (1000 - taken, 100000 - 100 * taken)

    assert taken == 300
    assert queue.value("select count(*) from llmqueue.ledger_cell") < 60 * 300 / 600
    assert queue.value("select sum(calls)::int from llmqueue.ledger_minute") > 150


def test_an_answer_after_the_pruning_is_put_right_for_the_day(queue: Queue) -> None:
    queue.model("m", 6000, tpd=100000, token_mode="input")
    queue.add(3, prompt="p" * 368)
    grant = queue.claim(1).only
    queue.advance(200)
    queue.claim(1)
    queue.rows("select llmqueue_internal.prune_ledger()")
    assert queue.value("select count(*) from llmqueue.ledger_minute") == 1

    queue.settle(answered(grant, 30, 1))
    assert left(queue) == (None, 100000 - 130)
    queue.rows("select llmqueue_internal.prune_ledger()")
    assert left(queue) == (None, 100000 - 130)


@pytest.mark.parametrize("step_s", [0, 5, -5, -1800])
def test_a_step_of_the_clock_gives_no_second_day(queue: Queue, step_s: float) -> None:
    queue.model("m", 60000, rpd=100)
    queue.add(200)
    assert len(queue.claim(100).grants) == 100
    queue.advance(step_s)
    if step_s >= 0:
        queue.rows("select llmqueue.clock_stepped()")
    else:
        assert queue.claim(1).grants == []
    queue.advance(300)

    assert queue.claim(10).reasons == {"m": "day"}


def test_old_minutes_go_and_the_day_stays(queue: Queue) -> None:
    queue.model("m", 6000, rpd=1000)
    queue.add(100)
    for _ in range(5):
        assert len(queue.claim(2).grants) == 2
        queue.advance(timedelta(days=1).total_seconds())
        queue.rows("select llmqueue_internal.prune_ledger()")
        queue.rows("select llmqueue_internal.prune_ledger()")

    assert queue.value("select count(*) from llmqueue.ledger_minute") <= 4


def test_days_of_two_models_are_their_own(queue: Queue) -> None:
    queue.model("a", 60000, rpd=2)
    queue.model("b", 60000, rpd=3)
    queue.add(10)

    claimed = queue.claim(10)

    assert sorted(grant.model for grant in claimed.grants) == ["a"] * 2 + ["b"] * 3
    assert claimed.reasons == {"a": "day", "b": "day"}


@pytest.mark.parametrize("column", ["rpd", "tpd"])
def test_a_raised_limit_of_the_day_lifts_at_once(queue: Queue, column: str) -> None:
    columns: dict[str, Any] = {"token_mode": "input"} if column == "tpd" else {}
    unit = 9 if column == "tpd" else 1
    queue.model("m", 60000, **{column: 2 * unit}, **columns)
    queue.add(10)
    assert len(queue.claim(10).grants) == 2

    queue.model("m", 60000, **{column: 5 * unit})
    assert len(queue.claim(10).grants) == 3
    queue.model("m", 60000, **{column: unit})
    assert queue.claim(10).reasons == {"m": "day"}
