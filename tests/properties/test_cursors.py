"""Resume cursors change how much a claim reads, never which tasks it takes: the same work, with and without them."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import psycopg
from hypothesis import given
from hypothesis import strategies as st

from tests.support.sql import Queue, complete, release

# What is done, with how many tasks, of which priority, for which user, and how many seconds ago it was due.
Step = tuple[str, int, int, str | None, int]


def steps(*verbs: str) -> st.SearchStrategy[list[Step]]:
    step = st.tuples(
        st.sampled_from(verbs),
        st.integers(1, 12),
        st.sampled_from([0, 0, 0, 1, 5, 100]),
        st.sampled_from([None, None, "a", "b", "é"]),
        st.integers(0, 3),
    )
    return st.lists(step, min_size=4, max_size=25)


def run(conn: psycopg.Connection[Any], todo: Sequence[Step], look_in_s: float | None) -> list[list[int]]:
    """Returns which tasks each claim took, by the order of their insertion; `look_in_s` None: without cursors."""
    claims: list[list[int]] = []
    with conn.transaction(force_rollback=True):
        queue = Queue(conn)
        queue.rows("delete from tasks")
        queue.model("m", 600_000)
        keys: list[Any] = []
        running: list[Any] = []
        for verb, number, priority, user, seconds in todo:
            assert queue.now is not None
            if verb in {"add", "add late"}:
                due_at = queue.now - timedelta(seconds=seconds if verb == "add late" else 0)
                keys += queue.add(number, priority=priority, user_id=user, created_at=due_at)
            elif verb == "claim":
                if look_in_s is not None:
                    claim_state = queue.claim_state.get(queue.worker) or {}
                    epoch_s = queue.value("select extract(epoch from clock_timestamp())::float8")
                    queue.claim_state[queue.worker] = {"cursors": [], **claim_state, "look_at": epoch_s + look_in_s}
                claimed = queue.claim(number)
                claims.append([keys.index(key) for key in claimed.ids])
                running += claimed.grants
            elif verb == "complete":
                queue.settle(*[complete(grant) for grant in running])
                running = []
            elif verb == "release":
                queue.settle(*[release(grant) for grant in running[::2]])
                running = running[1::2]
            queue.advance(0.5)
    return claims


@given(steps("add", "claim", "claim", "complete"))
def test_reading_from_marks_finds_what_reading_from_the_start_finds(
    backlog: psycopg.Connection[Any], todo: list[Step]
) -> None:
    assert run(backlog, todo, look_in_s=30) == run(backlog, todo, look_in_s=None)


@given(steps("add", "add late", "claim", "claim", "complete", "release"))
def test_looking_behind_the_marks_finds_what_was_given_back_or_came_late(
    backlog: psycopg.Connection[Any], todo: list[Step]
) -> None:
    assert run(backlog, todo, look_in_s=-1) == run(backlog, todo, look_in_s=None)
