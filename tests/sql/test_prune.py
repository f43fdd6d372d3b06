"""prune_ledger and prune_attempts: they delete in bounded steps, and nothing that is still needed."""

from __future__ import annotations

from datetime import timedelta

import pytest

from tests.support.sql import Queue, complete


def test_what_a_window_may_reach_is_never_pruned(queue: Queue) -> None:
    queue.model("m", 60)
    queue.add(100)

    granted = []
    for _ in range(200):
        granted += [queue.now.timestamp()] * len(queue.claim(5).grants)
        queue.rows("select llmqueue_internal.prune_ledger()")
        queue.advance(0.7)

    assert len(granted) > 60
    assert max(sum(at - 60.5 < earlier <= at for earlier in granted) for at in granted) <= 60


def test_the_last_grant_survives_and_so_the_bucket_and_the_open_cell(queue: Queue) -> None:
    queue.model("m", 60)
    queue.add(10)
    queue.claim(2)
    cell = queue.value("select cell from llmqueue.ledger_grant")
    queue.advance(100_000)

    queue.rows("select llmqueue_internal.prune_ledger()")

    assert queue.values("select cell from llmqueue.ledger_grant") == [cell]
    queue.claim(1)
    assert queue.rows("select cell, calls from llmqueue.ledger_cell") == [{"cell": cell, "calls": 2}]


@pytest.mark.parametrize(
    "forbidden", [(), ("hashjoin", "hashagg"), ("hashjoin", "mergejoin", "material", "sort", "hashagg")]
)
def test_an_old_ledger_goes_in_bounded_steps_whatever_the_plan(queue: Queue, forbidden: tuple[str, ...]) -> None:
    queue.model("m", 60)
    for node in forbidden:
        queue.rows(f"set local enable_{node} = off")
    queue.rows("insert into llmqueue.ledger_cell (model, cell, calls) select 'm', n, 1 from generate_series(1, 5000) n")
    queue.rows(
        "insert into llmqueue.ledger_grant (model, cell, calls, level, granted_at) "
        "select 'm', n, 1, 0, now() from generate_series(1, 5001) n"
    )

    pruned = [queue.value("select llmqueue_internal.prune_ledger()") for _ in range(4)]

    assert pruned == [4000, 4000, 2000, 0]
    assert queue.values("select cell from llmqueue.ledger_grant") == [5001]


def test_the_newest_attempt_stays_since_a_lost_state_is_known_by_it(queue: Queue) -> None:
    queue.model("m", 60000)
    queue.add(3)
    grants = queue.claim(3).grants
    queue.settle(*(complete(grant) for grant in grants))

    queue.advance(86400)
    queue.value("select llmqueue.prune_attempts('1 hour', 100)")

    assert queue.values("select fence from llmqueue.attempt") == [grants[-1].fence]


def test_old_ended_attempts_go_and_open_or_young_ones_stay(queue: Queue) -> None:
    queue.model("m", 60000)
    queue.add(4)
    old, still_open = queue.claim(2).grants
    queue.complete(old)
    queue.advance(86400 * 31)
    young = queue.claim(2).grants
    queue.settle(*map(complete, young))

    assert queue.value("select llmqueue.prune_attempts(%s, 100)", timedelta(days=30)) == 1

    assert queue.values("select fence from llmqueue.attempt order by 1") == [
        still_open.fence,
        *(grant.fence for grant in young),
    ]


def test_attempts_are_pruned_in_bounded_steps_behind_open_ones(queue: Queue) -> None:
    queue.model("m", 60000)
    queue.add(20)
    grants = queue.claim(20).grants
    queue.settle(*map(complete, grants[5:]))  # five that never end stand before them
    queue.advance(86400 * 31)

    for _ in range(10):
        queue.value("select llmqueue.prune_attempts(%s, 8)", timedelta(days=30))

    left = [*grants[:5], grants[-1]]
    assert queue.values("select fence from llmqueue.attempt order by 1") == [grant.fence for grant in left]
