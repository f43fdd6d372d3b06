"""Pools: shares follow the weights while there is headroom; without it, the others take them at once (design I15)."""

from __future__ import annotations

import random
from collections import Counter
from typing import Any

import psycopg
import pytest

from tests.support.flow import Flow, refused
from tests.support.sql import Queue

WEIGHTS = {"a": 5, "b": 3, "c": 2}
PLENTY = 6_000_000


@pytest.fixture
def pool(conn: psycopg.Connection[Any]) -> Queue:
    """Three models of the default pool, with room for everything. Committed, so that claims stay quick."""
    queue = Queue(conn)
    for name, weight in WEIGHTS.items():
        queue.model(name, PLENTY, weight=weight)
    return queue


def take(queue: Queue, how_many: int, sizes: tuple[int, ...] = (1, 7, 60, 200, 3), workers: int = 1) -> Counter[str]:
    """Claims so many tasks by several workers, in claims of many sizes; returns how many each model took."""
    rng = random.Random(7)
    fleet = [queue.worker, *(queue.register() for _ in range(workers - 1))]
    taken: Counter[str] = Counter()
    while taken.total() < how_many:
        claimed = queue.claim(min(rng.choice(sizes), how_many - taken.total()), worker=rng.choice(fleet))
        assert claimed.grants
        taken.update(grant.model for grant in claimed.grants)
        queue.advance(0.05)
    return taken


def shares(taken: Counter[str]) -> dict[str, float]:
    return {name: taken[name] / taken.total() for name in sorted(taken)}


@pytest.mark.parametrize("workers", [1, 4])
def test_shares_follow_the_weights_within_one_percent_over_ten_thousand_tasks(pool: Queue, workers: int) -> None:
    pool.add(10_000)

    found = shares(take(pool, 10_000, workers=workers))

    print(f"{workers} workers: {found}")
    assert found == {
        "a": pytest.approx(0.5, abs=0.01),
        "b": pytest.approx(0.3, abs=0.01),
        "c": pytest.approx(0.2, abs=0.01),
    }


def test_a_pool_that_has_more_is_empty_for_nobody(pool: Queue) -> None:
    pool.add(10)

    claimed = pool.claim(1, ["c", "b", "a"])

    assert [grant.model for grant in claimed.grants] == ["a"]
    assert claimed.reasons == {"c": None, "b": None, "a": None}


@pytest.mark.parametrize("size", [1, 2, 3, 10])
def test_every_cycle_of_ten_is_shared_but_for_one_task(pool: Queue, size: int) -> None:
    pool.add(300)
    for _ in range(10):
        taken = take(pool, 30, sizes=(size,))
        assert all(abs(taken[name] - 3 * weight) <= 1 for name, weight in WEIGHTS.items()), taken


def test_a_closed_models_share_moves_at_once_and_comes_back_without_catching_up(pool: Queue) -> None:
    pool.add(6000)
    take(pool, 1000)
    pool.settle(refused(pool.claim(1, ["a"]).only, "quota", 3600))

    while_closed = take(pool, 2000)
    assert set(while_closed) == {"b", "c"}
    assert len(pool.claim(200).grants) == 200

    pool.value("select llmqueue.end_cooldown('a')")
    pool.rows("update llmqueue.model_state set rpm_ceiling = null, rpm_cut_at = null")
    found = [shares(take(pool, 400)) for _ in range(5)]
    print(found)
    assert found == [{name: pytest.approx(weight / 10, abs=0.02) for name, weight in WEIGHTS.items()}] * 5


@pytest.mark.parametrize("sizes", [(1,), (2, 5), (100,)])
def test_what_a_closed_model_leaves_is_shared_by_weight_too(pool: Queue, sizes: tuple[int, ...]) -> None:
    pool.add(1100)
    pool.settle(refused(pool.claim(1, ["a"]).only, "quota", 3600))

    found = shares(take(pool, 1000, sizes))

    assert found == {"b": pytest.approx(0.6, abs=0.03), "c": pytest.approx(0.4, abs=0.03)}


@pytest.mark.parametrize("size", [1, 3, 10])
def test_hot_tasks_asked_for_alone_are_shared_by_weight_too(pool: Queue, size: int) -> None:
    pool.add(300)
    pool.add(60, priority=100)
    taken: Counter[str] = Counter()
    while taken.total() < 60:
        claimed = pool.claim(0, hot_slots=min(size, 60 - taken.total()))
        assert claimed.grants
        taken.update(grant.model for grant in claimed.grants)

    assert all(abs(taken[name] - 6 * weight) <= 2 for name, weight in WEIGHTS.items()), taken
    assert not pool.claim(0, hot_slots=10).grants


@pytest.mark.parametrize("columns", [{"rpm": 0}, {"rpm": 60}, {"max_concurrency": 1, "hot_share": 0}])
def test_hot_tasks_that_one_model_cannot_take_the_others_take_in_the_same_claim(
    pool: Queue, columns: dict[str, Any]
) -> None:
    pool.model("a", **{"rpm": PLENTY, **columns})
    pool.add(300)
    pool.add(60, priority=100)

    claims = [pool.claim(0, hot_slots=3) for _ in range(20)]

    assert [len(claimed.grants) for claimed in claims] == [3] * 20
    assert all(grant.is_hot for claimed in claims for grant in claimed.grants)


@pytest.mark.parametrize(
    "columns",
    [{"enabled": False}, {"rpm": 0}, {"rpm": 60}, {"max_concurrency": 1, "hot_share": 0}, {"tpm": 0}, {"rpd": 1}],
)
def test_what_one_model_cannot_take_the_others_take_at_once(pool: Queue, columns: dict[str, Any]) -> None:
    pool.model("a", **{"rpm": PLENTY, **columns})
    pool.add(300)

    claims = [pool.claim(10) for _ in range(20)]

    assert [len(claimed.grants) for claimed in claims] == [10] * 20
    assert sum(grant.model == "a" for claimed in claims for grant in claimed.grants) <= 2


def test_a_weight_of_0_keeps_a_model_out_of_the_default_pool_and_not_from_its_own(pool: Queue) -> None:
    pool.model("c", PLENTY, weight=0)
    pool.add(100)
    own = pool.add(10, model="c")

    claimed = pool.claim(200)

    assert {grant.id for grant in claimed.grants if grant.model == "c"} == set(own)
    assert len(claimed.grants) == 110


def test_changed_weights_hold_from_the_next_claim(pool: Queue) -> None:
    pool.add(2000)
    take(pool, 500)
    pool.model("a", PLENTY, weight=1)
    pool.model("c", PLENTY, weight=6)
    take(pool, 20)

    found = shares(take(pool, 1000))

    assert found == {
        "a": pytest.approx(0.1, abs=0.02),
        "b": pytest.approx(0.3, abs=0.02),
        "c": pytest.approx(0.6, abs=0.02),
    }


def test_a_new_model_gets_its_share_and_no_more(pool: Queue) -> None:
    pool.add(3000)
    take(pool, 1000)
    pool.model("d", PLENTY, weight=10)

    first, then = take(pool, 100), shares(take(pool, 1000))

    assert first["d"] <= 60
    assert then["d"] == pytest.approx(0.5, abs=0.02)


def test_a_named_pool_has_members_and_weights_of_its_own(pool: Queue) -> None:
    pool.rows("insert into llmqueue.pool_member (pool, model, weight) values ('fast', 'a', 1), ('fast', 'b', 3)")
    pool.add(1000, model="fast")

    taken = take(pool, 1000)

    assert shares(taken) == {"a": pytest.approx(0.25, abs=0.01), "b": pytest.approx(0.75, abs=0.01)}


def test_a_model_of_weight_0_serves_the_named_pools_it_is_in(pool: Queue) -> None:
    pool.model("c", PLENTY, weight=0)
    pool.rows("insert into llmqueue.pool_member (pool, model) values ('slow', 'c')")
    in_pool = pool.add(5, model="slow")
    pool.add(5)

    claimed = pool.claim(100)

    assert {grant.id for grant in claimed.grants if grant.model == "c"} == set(in_pool)


def test_two_pools_with_the_same_members_are_shared_each_by_its_weights(pool: Queue) -> None:
    pool.rows("insert into llmqueue.pool_member (pool, model, weight) values ('fast', 'a', 1), ('fast', 'b', 1)")
    pool.add(1000)
    pool.add(1000, model="fast")
    taken: Counter[tuple[str, str]] = Counter()
    while taken.total() < 1600:
        taken.update((grant.lane, grant.model) for grant in pool.claim(20).grants)

    default = Counter({model: n for (lane, model), n in taken.items() if lane == ""})
    fast = Counter({model: n for (lane, model), n in taken.items() if lane == "fast"})
    assert shares(default) == {name: pytest.approx(weight / 10, abs=0.03) for name, weight in WEIGHTS.items()}
    assert shares(fast) == {"a": pytest.approx(0.5, abs=0.03), "b": pytest.approx(0.5, abs=0.03)}


def test_a_tasks_pool_is_bound_when_it_is_claimed(pool: Queue) -> None:
    pool.rows("insert into llmqueue.pool_member (pool, model) values ('fast', 'a')")
    first, second = pool.add(2, model="fast")
    assert pool.claim(1).only.model == "a"

    pool.rows("update llmqueue.pool_member set model = 'b'")

    assert (pool.claim(1).only.model, first < second) == ("b", True)


def test_a_pool_of_unknown_models_waits_and_stops_nobody(pool: Queue) -> None:
    pool.rows("insert into llmqueue.pool_member (pool, model) values ('ghosts', 'nobody')")
    pool.add(5, model="ghosts", priority=50)
    pool.add(5, model="nowhere", priority=50)
    plain = pool.add(5)

    assert set(pool.claim(100).ids) == set(plain)


def test_a_pool_named_like_a_model_is_served_by_it_and_by_the_members(pool: Queue) -> None:
    pool.rows("insert into llmqueue.pool_member (pool, model) values ('a', 'a'), ('a', 'b')")
    keys = pool.add(40, model="a")

    assert {grant.model for grant in pool.claim(10, ["b"]).grants} == {"b"}
    assert {grant.model for grant in pool.claim(10, ["a"]).grants} == {"a"}
    rest = pool.claim(100)
    assert len(rest.grants) == 20
    assert len({*rest.ids}) == 20
    assert set(rest.ids) <= set(keys)


@pytest.mark.parametrize("slots", [1, 4, 20])
def test_a_pinned_task_is_not_starved_by_the_pool_nor_the_pool_by_pinned_ones(pool: Queue, slots: int) -> None:
    """Both have a backlog without end; each gets its turn of the model that both want."""
    pool.model("a", 600)
    for name in "bc":
        pool.model(name, enabled=False)
    pool.add(1000)
    pool.add(1000, model="a")
    flow = Flow(pool, lambda _: 1.0, slots=slots)

    flow.run(60)

    lanes = Counter(grant.lane for _, grant in flow.grants)
    assert lanes.total() >= 590
    assert all(lanes[lane] >= 0.4 * lanes.total() for lane in ("", "a")), lanes


@pytest.mark.parametrize("slots", [1, 3, 20])
def test_a_lane_gets_turns_by_how_few_can_take_it(pool: Queue, slots: int) -> None:
    """What only this model can do goes before what others can do too; neither waits for the other to end."""
    pool.rows("insert into llmqueue.pool_member (pool, model) values ('two', 'a'), ('two', 'b')")
    pool.model("d", enabled=False)  # a paused model takes no share, nor does one in cooldown
    pool.model("e", PLENTY)
    pool.rows(
        "insert into llmqueue.model_state (model, cooldown_started_at, cooldown_until)"
        " values ('e', now(), '2100-01-01')"
    )
    for lane in ("a", "two", None):
        pool.add(2000, model=lane)
    lanes: Counter[str] = Counter()
    while lanes.total() < 600:
        lanes.update(grant.lane for grant in pool.claim(slots, ["a"]).grants)

    # the default pool is that of a, b and c: turns of 1 : 1/2 : 1/3; and one in ten is for the oldest, which are in a
    expected = {"a": 0.9 * 6 / 11 + 0.1, "two": 0.9 * 3 / 11, "": 0.9 * 2 / 11}
    assert {lane: lanes[lane] / lanes.total() for lane in lanes} == pytest.approx(expected, abs=0.08), lanes


def test_pinned_tasks_of_one_model_take_nothing_from_the_others_of_the_pool(pool: Queue) -> None:
    pool.add(3000, model="a")
    pool.add(600)
    taken: Counter[tuple[str, str]] = Counter()
    for _ in range(60):
        taken.update((grant.lane, grant.model) for grant in pool.claim(20).grants)

    in_pool = {model: n for (lane, model), n in taken.items() if lane == ""}
    assert in_pool.get("b", 0) >= 100
    assert in_pool.get("c", 0) >= 60
    assert taken["a", "a"] >= 300


def test_a_few_pool_tasks_go_by_turns_and_not_always_to_the_same(pool: Queue) -> None:
    taken: Counter[str] = Counter()
    for _ in range(100):
        pool.add(1)
        taken.update(grant.model for grant in pool.claim(50).grants)

    assert taken == Counter({"a": 50, "b": 30, "c": 20})
