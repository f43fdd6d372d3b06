"""A claim skips exactly those models whose lanes have no task for it."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import psycopg
from hypothesis import given
from hypothesis import strategies as st

from tests.support.sql import T0, Queue

MODELS = ["a", "b", "c", "d", "nobody"]
POOLS = ["p", "q", "a"]  # one has the name of a model
WEIGHT = st.sampled_from([0, 1, 5])
LANE = st.sampled_from([None, "a", "b", "nobody", "p", "q", "r"])
DUE_S = st.sampled_from([-60, -1, 30])


@given(
    weights=st.lists(WEIGHT, min_size=4, max_size=4),
    members=st.sets(st.tuples(st.sampled_from(POOLS), st.sampled_from(MODELS)), max_size=5),
    tasks=st.lists(st.tuples(LANE, st.sampled_from([0, 99, 100]), DUE_S, st.booleans()), max_size=5),
    asked=st.lists(st.sampled_from(MODELS), min_size=1, max_size=6),
    slots=st.sampled_from([0, 1, 7]),
    is_shared=st.booleans(),
)
def test_they_are_told_as_by_a_look_at_each(
    backlog: psycopg.Connection[Any],
    weights: list[int],
    members: set[tuple[str, str]],
    tasks: list[tuple[str | None, int, int, bool]],
    asked: list[str],
    slots: int,
    *,
    is_shared: bool,
) -> None:
    with backlog.transaction(force_rollback=True):
        queue = Queue(backlog)
        queue.rows("delete from tasks")
        for name, weight in zip(MODELS, weights, strict=False):
            queue.model(name, 60, weight=weight)
        for pool, member in members:
            queue.rows("insert into llmqueue.pool_member (pool, model) values (%s, %s)", pool, member)
        for lane, priority, due_s, is_aside in tasks:
            due_at = T0 + timedelta(seconds=due_s)
            [key] = queue.add(model=lane, priority=priority, created_at=due_at, run_at=due_at)
            if is_aside:
                queue.rows("insert into llmqueue.quarantine (task_id, step, reason) values (%s, 'claim', 'no')", key)
        shares = (
            queue.value("select llmqueue_internal.share_out(%s, %s, '{}')::text", asked, slots) if is_shared else "{}"
        )

        found = queue.value(
            "select llmqueue_internal.models_with_tasks(%s, %s::jsonb, %s, %s, null)", asked, shares, slots, T0
        )

        expected = {
            name
            for name in asked
            if queue.value(
                "select cardinality((llmqueue_internal.choose_lanes(%s, %s::jsonb, %s, 5, '{}', %s)).lanes)",
                name,
                shares,
                slots,
                T0,
            )
        }
        assert set(found) == expected
