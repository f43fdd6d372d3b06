"""The share of its quota that a backlog uses, with the SQL functions and a clock that the test moves."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import psycopg
import pytest

from tests.properties.test_limiter import fleet


@pytest.mark.parametrize(
    ("rpm", "wanted"),
    [
        (1, 1),
        (6, 10),
        (60, 1),
        (60, 20),
        (600, 1),
        pytest.param(600, 100, marks=pytest.mark.slow),
        pytest.param(3000, 500, marks=pytest.mark.slow),
        (60000, 500),
    ],
)
def test_a_backlog_uses_985_in_1000_of_its_quota(backlog: psycopg.Connection[Any], rpm: int, wanted: int) -> None:
    """Minutes from a cold start, back exactly at retry_at. Without tasks: the hottest would need a million."""
    look = "select llmqueue_internal.headroom(c, %(now)s) as budget from llmqueue.model_config c where c.model = 'x'"
    take = f"""select least((budget).calls, %(wanted)s) as calls,
                      llmqueue_internal.charge(
                          budget, least((budget).calls, %(wanted)s), 0, 0, 0, 0) from ({look}) looked
                where (budget).calls > 0"""
    wait = f"""select extract(epoch from w.retry_at - %(now)s)::float8 as seconds
                 from ({look}) looked, llmqueue_internal.when_free(budget, false, %(wanted)s, 0, 0) w"""
    minutes = 4 if (rpm, wanted) == (600, 1) else 10  # 6,000 claims otherwise
    with fleet(backlog) as world:
        world.queue.model("x", rpm)
        log: list[tuple[float, int]] = []
        asked = 0
        while world.true < timedelta(minutes=minutes):
            args = {"now": world.queue.now, "wanted": wanted}
            taken = world.queue.conn.execute(take.encode(), args).fetchone()
            log.append((world.true.total_seconds(), taken["calls"] if taken else 0))
            waited = world.queue.conn.execute(wait.encode(), args).fetchone()
            assert waited is not None
            world.pass_time(timedelta(seconds=waited["seconds"]))
            asked += 1
        worst = max(
            sum(calls for at, calls in log if end - 60.5 <= at <= end) for end, _ in log[:: max(1, len(log) // 500)]
        )
        use = sum(calls for _, calls in log) / (rpm * minutes)
        print(f"rpm {rpm}, {wanted} at a time: use {use:.2%}, worst window {worst}, asked {asked} times")

        assert worst <= rpm
        assert use >= 0.985
        assert asked <= 2.2 * sum(1 for _, calls in log if calls) + minutes * 60 * 4
