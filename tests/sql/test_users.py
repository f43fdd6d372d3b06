"""Users take turns inside a priority, at a cost that does not grow with their number (design I13)."""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import psycopg
import pytest

from tests.guards.test_plans import touching
from tests.support.adoption import adopt, run
from tests.support.flow import Flow
from tests.support.sql import Grant, Queue

LONG_AGO = datetime(2001, 1, 1, tzinfo=UTC)
BATCH = 10
# Per task: its user, its user's head, the lock, the update by key, and as much again for looking ahead.
MOST_READ = 10 * BATCH + 40


@pytest.fixture
def one_model(queue: Queue) -> Queue:
    queue.model("m", 600_000)
    return queue


def owners(queue: Queue) -> dict[Any, Any]:
    return {row["id"]: row["user_id"] for row in queue.rows("select id, user_id from tasks")}


def add(queue: Queue, user: str | None, how_many: int, **columns: Any) -> list[Any]:
    return queue.add(how_many, user_id=user, **columns)


@pytest.mark.parametrize("rpm", [60, pytest.param(600, marks=pytest.mark.slow)])
def test_ten_tasks_after_another_users_hundred_thousand_are_done_within_twice_their_share(
    conn: psycopg.Connection[Any], rpm: int
) -> None:
    queue = Queue(conn)
    queue.model("m", rpm)
    queue.rows(
        "insert into tasks (prompt, user_id, created_at) select 'why?', 'big', %s from generate_series(1, 100000)",
        LONG_AGO,
    )
    flow = Flow(queue, lambda _: 1.0)
    flow.run(65)
    few = add(queue, "small", 10)
    flow.run(65 + 120)

    started = [at_s - 65 for at_s, grant in flow.grants if grant.id in few]
    share_s = 10 / (rpm / 2) * 60
    print(f"rpm {rpm}: the ten were sent after {started[-1]:.1f} s; at their share that takes {share_s:.0f} s")
    assert len(started) == 10
    assert started[-1] <= 2 * share_s


def test_several_users_wait_for_one_users_flood_no_longer_than_for_each_other(one_model: Queue) -> None:
    add(one_model, "big", 3000, created_at=LONG_AGO)
    for n in range(5):
        add(one_model, f"u{n}", 20)
    users = owners(one_model)

    taken: Counter[str] = Counter()
    while min(taken[f"u{n}"] for n in range(5)) < 20:
        taken.update(users[key] for key in one_model.claim(12).ids)

    assert taken["big"] <= 20 + 0.1 * taken.total() + 12, "its own turns, and one grant in ten by age"


@pytest.mark.parametrize("sizes", [[1], [2, 3], [50], [1, 7, 30]])
def test_users_take_turns_task_by_task(one_model: Queue, sizes: list[int]) -> None:
    names = [f"u{n}" for n in range(7)]
    for name in names:
        add(one_model, name, 100, created_at=LONG_AGO)
    users, rng = owners(one_model), random.Random(1)

    taken: Counter[str] = Counter()
    while taken.total() < 350:
        taken.update(users[key] for key in one_model.claim(rng.choice(sizes)).ids)

    assert max(taken.values()) - min(taken[name] for name in names) <= 2 + 0.1 * taken.total()
    fair = taken.total() / 7
    assert all(taken[name] >= 0.85 * fair for name in names), taken


def test_turns_go_on_from_claim_to_claim(one_model: Queue) -> None:
    for name in "abc":
        add(one_model, name, 5)
    users = owners(one_model)

    order = [users[one_model.claim(1).only.id] for _ in range(9)]

    assert all(set(order[n : n + 3]) == {"a", "b", "c"} for n in range(6)), order


def test_the_grants_of_the_oldest_do_not_set_the_turns_back(one_model: Queue) -> None:
    """A flood that is older than all else has one grant in ten: after it the turns go on from where they were."""
    add(one_model, "big", 1000, created_at=LONG_AGO)
    names = [f"user {n:02}" for n in range(40)]
    for name in names:
        add(one_model, name, 20)
    users = owners(one_model)

    taken: Counter[str] = Counter()
    while taken.total() < 400:
        taken.update(users[key] for key in one_model.claim(1).ids)

    assert min(taken[name] for name in names) >= 6, taken


@pytest.mark.parametrize("priority", [1, 100])
def test_one_users_better_tasks_do_not_set_the_turns_of_the_others_back(one_model: Queue, priority: int) -> None:
    names = [f"user {n:02}" for n in range(40)]
    for name in names:
        add(one_model, name, 20)
    add(one_model, "a user", 200, priority=priority, run_at=one_model.now + timedelta(hours=1))
    users = owners(one_model)

    taken: Counter[str] = Counter()
    while taken.total() < 440:
        one_model.rows(
            """update tasks set run_at = null where id = (
                   select min(id) from tasks where user_id = 'a user' and run_at is not null and status = 'unsolved')"""
        )
        taken.update(users[key] for key in one_model.claim(10).ids)

    assert min(taken[name] for name in names) >= 6, taken


def test_workers_each_with_turns_of_their_own_are_fair_too(one_model: Queue) -> None:
    fleet = [one_model.register() for _ in range(8)]
    add(one_model, "big", 1000, created_at=LONG_AGO)
    few = add(one_model, "small", 20)

    taken: list[Any] = []
    for n in range(80):
        taken += one_model.claim(1, worker=fleet[n % 8]).ids

    assert set(few) <= set(taken)


def test_what_one_user_does_not_need_the_others_get_in_the_same_claim(one_model: Queue) -> None:
    add(one_model, "big", 100)
    few = add(one_model, "small", 1)

    ids = one_model.claim(50).ids

    assert len(ids) == 50
    assert set(few) <= set(ids)


def test_a_users_own_tasks_stay_in_their_order(one_model: Queue) -> None:
    rng = random.Random(2)
    due = list(range(200))
    rng.shuffle(due)
    for n in due:
        add(one_model, f"u{n % 4}", 1, created_at=LONG_AGO + timedelta(seconds=n))
    rows = one_model.rows("select id, user_id, created_at from tasks")
    users = {row["id"]: (row["user_id"], row["created_at"]) for row in rows}

    seen: dict[str, list[datetime]] = defaultdict(list)
    while sum(map(len, seen.values())) < 180:
        for key in one_model.claim(rng.choice([1, 5, 23])).ids:
            user, at = users[key]
            seen[user].append(at)

    for user, order in seen.items():
        assert order == sorted(order), user


def test_a_task_that_is_not_due_costs_its_user_nothing_else(one_model: Queue) -> None:
    add(one_model, "a", 3, run_at=one_model.now + timedelta(hours=1))
    ready = [*add(one_model, "a", 2), *add(one_model, "b", 2)]

    assert set(one_model.claim(10).ids) == set(ready)


def test_tasks_without_a_user_are_one_user(one_model: Queue) -> None:
    nobody = add(one_model, None, 100, created_at=LONG_AGO)
    some = add(one_model, "a", 10)

    first = one_model.claim(24).ids

    assert set(some) <= set(first)
    assert len(set(first) & set(nobody)) == 14


def test_a_higher_priority_goes_before_all_turns(one_model: Queue) -> None:
    add(one_model, "a", 50, created_at=LONG_AGO)
    better = add(one_model, "b", 9, priority=1)

    assert one_model.claim(9).ids == better


def test_each_priority_has_turns_of_its_own(one_model: Queue) -> None:
    for priority in (1, 0):
        for name in "ab":
            add(one_model, name, 20, priority=priority)
    rows = one_model.rows("select id, user_id, priority from tasks")
    kinds = {row["id"]: (row["priority"], row["user_id"]) for row in rows}

    taken = Counter(kinds[key] for key in one_model.claim(60).ids)

    assert (taken[1, "a"], taken[1, "b"]) == (20, 20)
    assert abs(taken[0, "a"] - taken[0, "b"]) <= 6


@pytest.mark.parametrize("users", [1, 100, 10_000])
def test_a_claim_costs_its_batch_however_many_users_wait(conn: psycopg.Connection[Any], users: int) -> None:
    queue = Queue(conn)
    queue.model("m", 6_000_000)
    queue.rows("alter table tasks set (autovacuum_enabled = off)")
    queue.rows("insert into tasks (prompt, user_id) select 'p', 'u' || n %% %s from generate_series(1, 20000) n", users)
    query = """select (task).task_id from llmqueue.claim(%s, null, %s, p_claim_state => %s::jsonb)
                where (task).task_id is not null"""
    reads = []
    with psycopg.connect(conn.info.dsn, autocommit=True) as plain:
        for n in range(8):
            with touching(plain) as touched:
                turns = f'{{"users": {{"": "u{n * 7}"}}}}'
                touched.rows = plain.execute(query.encode(), (queue.worker, BATCH, turns)).fetchall()
            assert len(touched.rows) == BATCH
            assert touched.sequential == 0
            reads.append(touched.fetched)

    print(f"{users} users: {reads} rows read for {BATCH} taken")
    assert max(reads) <= MOST_READ


OWNERS: dict[str, tuple[str, list[Any], type]] = {
    "integer": ("integer", [7, 70, 8], int),
    "bigint": ("bigint", [7, 2**40, -1], int),
    "uuid": ("uuid", [UUID(int=n) for n in (1, 2, 3)], UUID),
    "enum": ("team", ["red", "green", "blue"], str),
    "varchar": ("varchar(20)", ["ä", "Z", "a b"], str),
    "boolean": ("boolean", [True, False], bool),
}


@pytest.mark.parametrize("kind", OWNERS)
def test_users_of_any_type_take_turns(database: str, kind: str) -> None:
    type_, users, _ = OWNERS[kind]
    run(
        database,
        "create type team as enum ('red', 'green', 'blue')",
        f"""create table tasks (id bigint generated always as identity primary key, prompt text, answer text,
                                status text default 'unsolved', owner {type_})""",
    )
    adopt(database, columns={"user_id": "owner"})
    with psycopg.connect(database, autocommit=True) as conn:
        queue = Queue(conn)
        queue.model("m", 60000)
        for user in users:
            queue.add(30, owner=user)
        queue.add(30, owner=None)
        found = {row["id"]: row["owner"] for row in queue.rows("select id, owner from tasks")}

        taken: Counter[Any] = Counter()
        for _ in range(8):
            taken.update(found[grant.id] for grant in _done(queue, queue.claim(4).grants))

    fair = 32 / (len(users) + 1)
    assert all(abs(taken[user] - fair) <= 4 for user in [*users, None]), taken


def _done(queue: Queue, grants: list[Grant]) -> list[Grant]:
    assert all(queue.complete(grant) == "completed" for grant in grants)
    return grants
