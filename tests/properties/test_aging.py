"""One grant in ten goes to the oldest task, however tasks differ; if they do not, the order ensures it (I13)."""

from __future__ import annotations

import random
from datetime import timedelta
from typing import Any

import psycopg
from hypothesis import example, given
from hypothesis import strategies as st

from tests.support.sql import T0, Queue

POOLS = [f"pool {no}" for no in range(30)]
# lane, priority and user: all the same, or apart by one of them, or by more
KINDS = [
    [(None, 0, None)],
    [(lane, 0, None) for lane in (None, "m", *POOLS)],
    [(None, priority, None) for priority in (-32768, 0, 5, 99)],
    [(None, 0, f"user {no}") for no in range(30)],
    [(None, -1, None), ("pool 1", 99, "u")],
]


# one of a higher priority was left when those of the lowest were looked at
@example(kinds=KINDS[2], tasks=29, seed=338, wanted=20, turn=0)
# the oldest is the last user's
@example(kinds=KINDS[3], tasks=40, seed=0, wanted=20, turn=0)
@given(
    kinds=st.sampled_from(KINDS),
    tasks=st.integers(29, 60),
    # the tasks are drawn outside of hypothesis, which likes them alike
    seed=st.integers(0, 2**32),
    wanted=st.sampled_from([1, 4, 10, 11, 13, 17, 20, 20]),
    turn=st.integers(0, 9),
)
def test_each_tenth_grant_is_the_oldests(
    backlog: psycopg.Connection[Any],
    kinds: list[tuple[str | None, int, str | None]],
    tasks: int,
    seed: int,
    wanted: int,
    turn: int,
) -> None:
    with backlog.transaction(force_rollback=True):
        queue = Queue(backlog)
        queue.rows("delete from tasks")
        queue.model("m", 6_000_000)
        for pool in POOLS:
            queue.rows("insert into llmqueue.pool_member (pool, model) values (%s, 'm')", pool)
        rng = random.Random(seed)
        for age in rng.sample(range(1, 1000), tasks):
            lane, priority, user = rng.choice(kinds)
            queue.add(model=lane, priority=priority, user_id=user, created_at=T0 - timedelta(seconds=age))
        if turn:
            assert len(queue.claim(turn).ids) == turn

        queue.claim(wanted)

        assert queue.value(OLDER) >= (turn + wanted) // 10
        assert queue.value(TURN) == (turn + wanted) % 10


# taken, and older than all that is left
OLDER = """
    select count(*) from tasks
     where status = 'running'
       and created_at < all (select rest.created_at from tasks rest where rest.status = 'unsolved')
"""
TURN = "select turn from llmqueue.ledger_grant order by grant_no desc limit 1"
