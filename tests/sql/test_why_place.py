"""llmqueue.why() of ready tasks: a row for each model that could take it, and how many tasks go first."""

from __future__ import annotations

from datetime import timedelta

import pytest

from tests.support.sql import T0, Queue
from tests.support.why import EARLIER, add, detail, only, start_cooldown, summary, why

PLACE = ("ahead", "higher", "own", "users", "turns", "ahead_is_exact")


@pytest.fixture(autouse=True)
def model(queue: Queue) -> None:
    queue.model("m", rpm=60)


def test_a_task_of_the_default_pool_has_a_row_for_each_model(queue: Queue) -> None:
    queue.model("off", enabled=False)
    queue.model("alone", weight=0)
    queue.model("n")
    start_cooldown(queue, 30)
    key = add(queue, model=None)

    assert {row["model"]: row["reason"] for row in why(queue, key)} == {"m": "cooldown", "n": None}


def test_a_task_of_a_named_pool(queue: Queue) -> None:
    queue.model("off", enabled=False)
    queue.rows("insert into llmqueue.pool_member (pool, model) values ('p', 'm'), ('p', 'off'), ('p', 'nobody')")
    key = add(queue, model="p")

    assert {row["model"]: row["reason"] for row in why(queue, key)} == {"m": None, "nobody": "unknown", "off": "paused"}


def test_no_model_may_take_tasks_of_the_default_pool(queue: Queue) -> None:
    queue.model("m", enabled=False)

    assert summary(queue, add(queue, model=None)) == ("ready", "no_model", None, None)


def test_better_tasks_of_its_lane(queue: Queue) -> None:
    queue.add(3, model="m", priority=7, run_at=EARLIER)
    queue.add(4, model="m", run_at=EARLIER - timedelta(seconds=1))
    key = add(queue)
    queue.add(5, model="m", run_at=EARLIER + timedelta(seconds=1))
    queue.add(6, model="m", priority=-1, run_at=EARLIER - timedelta(seconds=1))

    assert summary(queue, key) == ("ready", "behind", "m", None)
    assert detail(queue, key, *PLACE) == (7, 3, 4, 0, 0, True)
    assert detail(queue, key, "older", "older_is_exact") == (13, True)


def test_what_will_not_run_goes_before_nothing(queue: Queue) -> None:
    aside = add(queue, priority=7)
    queue.rows("insert into llmqueue.quarantine (task_id, step, reason) values (%s, 'claim', 'too long')", aside)
    add(queue, priority=7, run_at=T0 + timedelta(seconds=1))
    add(queue, priority=7, deadline_at=T0)
    key = add(queue)

    assert summary(queue, key) == ("ready", None, "m", None)


def test_users_take_turns(queue: Queue) -> None:
    queue.add(100, model="m", user_id="many", run_at=EARLIER - timedelta(hours=1))
    queue.add(1, model="m", user_id="one", run_at=EARLIER)
    queue.add(2, model="m", user_id="me", run_at=EARLIER - timedelta(minutes=1))
    add(queue, user_id="later", run_at=T0 + timedelta(minutes=1))
    key = add(queue, user_id="me")

    assert only(queue, key)["reason"] == "behind"
    assert detail(queue, key, *PLACE) == (2 + 3 + 1, 0, 2, 2, 3 + 1, True)


def test_better_tasks_in_other_lanes_of_the_model(queue: Queue) -> None:
    queue.rows("insert into llmqueue.pool_member (pool, model) values ('p', 'm')")
    queue.add(2, model=None, priority=7, run_at=EARLIER)
    queue.add(3, model="p", priority=7, run_at=EARLIER - timedelta(seconds=1))
    queue.add(4, model="p", run_at=EARLIER)
    queue.add(5, model="other", priority=7, run_at=EARLIER)
    key = add(queue)

    assert summary(queue, key) == ("ready", "behind", "m", None)
    assert detail(queue, key, "ahead", "other_lanes", "older", "older_is_exact") == (0, 5, 9, True)


def test_counts_are_bounded(queue: Queue) -> None:
    queue.add(10_001, model="m", run_at=EARLIER)
    key = add(queue)

    assert detail(queue, key, *PLACE) == (10_000, 0, 10_000, 0, 0, False)
    assert detail(queue, key, "older", "older_is_exact") == (10_000, False)


@pytest.mark.parametrize("users", [1, 5_000])
def test_what_it_reads_is_bounded(queue: Queue, users: int) -> None:
    """Of 40,000 ready tasks without statistics: 10,000 each of better, older and the same user's, and a few others."""
    for lane in ("m", None):
        queue.rows(
            "insert into tasks (prompt, model, priority, user_id, run_at)"
            " select 'p', %s, n %% 3, 'u' || n %% %s, %s from generate_series(1, 20000) n",
            lane, users, EARLIER,
        )  # fmt: skip
    key = add(queue, user_id="u1")
    read = "select seq_scan, idx_tup_fetch from pg_stat_xact_user_tables where relname = 'tasks'"

    for _ in range(7):  # from the sixth call on plpgsql may keep a generic plan
        (before,) = queue.rows(read)
        assert only(queue, key)["reason"] == "behind"
        (after,) = queue.rows(read)

        assert after["seq_scan"] == before["seq_scan"]
        assert after["idx_tup_fetch"] - before["idx_tup_fetch"] <= 3 * 10_001 + 2 * 2_000 + 3 * 500 + 100
