"""Bugs of other queues (with their issue numbers), each as a test: configuration, waiting, retrying.

The list at the end has the bugs that cannot occur in this design, and why.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import psycopg
import pytest

from tests.support.flow import Flow, refused
from tests.support.sessions import Sessions, sessions
from tests.support.sql import Queue, complete


@pytest.fixture
def several(installed: str) -> Iterator[Sessions]:
    with sessions(installed) as opened:
        yield opened


def test_pyratelimiter_a_worker_that_does_not_get_the_lock_is_not_told_that_the_limit_is_reached(
    several: Sessions,
) -> None:
    """PyrateLimiter on Postgres: who lost LOCK TABLE … NOWAIT was counted as over the limit, and slept for it."""
    queue = several.queue()
    queue.model("a", 600)
    queue.model("b", 600)
    queue.add(10)
    holder = several.connect()
    holder.autocommit = False
    holder.execute("select pg_advisory_xact_lock(llmqueue_internal.lock_space(), hashtext('a'))")

    claimed = queue.claim(20)

    assert claimed.reasons["a"] == "contended"
    assert claimed.retry_in_s["a"] is None
    assert {grant.model for grant in claimed.grants} == {"b"}


def test_pyratelimiter_301_nobody_waits_with_the_lock_in_hand(several: Sessions) -> None:
    """PyrateLimiter #301: the lock was held while sleeping until there was room."""
    queue, other = several.queue(), several.queue()
    queue.model("m", 1)
    queue.add(10)
    queue.claim(1)
    other.rows("set lock_timeout = '1s'")

    for _ in range(20):
        assert queue.claim(1, ["m"]).reasons == {"m": "rpm"}
        assert queue.value("select count(*) from pg_locks where locktype = 'advisory'") == 0
        assert other.claim(1, ["m"]).reasons == {"m": "rpm"}, "not contended"


def test_draft_detective_484_a_claim_that_is_refused_returns_at_once_and_holds_nothing(several: Sessions) -> None:
    """draft-detective #484, #510: waiters blocked inside FOR UPDATE ate the pool of connections."""
    queue = several.queue()
    queue.model("m", 600)
    queue.add(3)
    holder = several.connect()
    holder.autocommit = False
    holder.execute("select from tasks for update")
    queue.rows("set lock_timeout = '1s'")

    assert queue.claim(3).grants == []

    assert queue.value("select count(*) from pg_stat_activity where wait_event_type = 'Lock'") == 0


@pytest.mark.parametrize(
    "columns",
    [
        {"rpm": -1},
        {"rpm": None},
        {"tpm": -1},
        {"rpd": -1},
        {"tpd": -1},
        {"max_output": 0},
        {"weight": -1},
        {"weight": float("nan")},
        {"weight": float("inf")},
        {"hot_share": 1},
        {"hot_share": float("nan")},
        {"token_mode": "some"},
        {"output_tpm": 5},
        {"quota_timezone": "Mars/Olympus"},
        {"burst_windows": '{"10": 2}'},
        {"burst_windows": '{"0": 0.5}'},
        {"burst_windows": '{"10": "all"}'},
        {"burst_windows": '{"10 s": 0.5}'},
        {"burst_windows": "[10]"},
    ],
)
def test_hatchet_4874_a_limit_that_makes_no_sense_is_refused_and_not_taken_for_none(
    queue: Queue, columns: dict[str, Any]
) -> None:
    """Hatchet #4874: a bad expression meant no limit at all for five minutes."""
    with pytest.raises(psycopg.DatabaseError):
        queue.model("m", **{"rpm": 60, **columns})


def test_hatchet_1834_a_limit_stays_what_it_was_set_to(queue: Queue) -> None:
    """Hatchet #1834: a limit reset itself to 0."""
    queue.model("m", 60, tpm=500000)
    queue.add(300)
    flow = Flow(queue, lambda _: 1.0, maintenance=["prune", "promote", "calibrate"])

    flow.run(200)

    assert queue.rows("select rpm, tpm from llmqueue.model_config") == [{"rpm": 60, "tpm": 500000}]
    assert sum(at_s >= 61 for at_s, _ in flow.grants) >= 0.95 * 60 * 139 / 60


def test_hatchet_a_raised_limit_can_be_used_at_once(queue: Queue) -> None:
    """Hatchet: raising a limit did not raise what was left of it until the next refill."""
    queue.model("m", 60)
    queue.add(600)
    Flow(queue).run(61)
    assert queue.claim(10).grants == []

    queue.model("m", 6000)

    taken = len(queue.claim(100).grants)
    assert taken >= 20
    queue.advance(1)
    assert taken + len(queue.claim(100).grants) >= 100, "a second later as many as it gives in one"


def test_litellm_3646_tasks_wait_for_a_closed_model_and_do_not_fail(queue: Queue) -> None:
    """LiteLLM #3646 (#1152, #2218): a request failed while its deployments cooled down, instead of waiting for them."""
    queue.model("m", 6000)
    keys = queue.add(5)
    queue.settle(refused(queue.claim(1).only, "quota", 60))
    queue.advance(59)
    assert queue.claim(10).grants == []

    flow = Flow(queue, lambda _: 0.5, maintenance=["promote"])
    flow.run(20)

    assert {queue.task(key)["status"] for key in keys} == {"solved"}


def test_litellm_7669_retry_after_is_waited_for(queue: Queue) -> None:
    """LiteLLM #7669: Retry-After was ignored. animus-cli #100: the date that the provider names is waited for."""
    queue.model("m", 6000)
    queue.add(5)
    queue.settle(refused(queue.claim(1).only, "quota", 5 * 3600))

    queue.advance(5 * 3600 - 1)
    assert queue.claim(10).reasons == {"m": "cooldown"}
    queue.advance(1)
    assert len(queue.claim(10).grants) == 1


@pytest.mark.parametrize("order", [(60, 0.7), (0.7, 60)])
def test_litellm_40130_the_longer_of_two_pauses_wins(queue: Queue, order: tuple[float, float]) -> None:
    """LiteLLM #40130: a second cooldown of 0.7 s replaced one of 60 s."""
    queue.model("m", 6000)
    queue.add(10)
    for grant, pause_s in zip(queue.claim(2).grants, order, strict=True):
        queue.settle(refused(grant, "quota", pause_s))

    queue.advance(59)
    assert queue.claim(10).reasons == {"m": "cooldown"}


def test_litellm_34836_a_refusal_holds_from_the_next_grant_of_any_worker(queue: Queue) -> None:
    """LiteLLM #34836: cooldowns were enforced by a cache of ten seconds; a failing model stayed in rotation."""
    queue.model("m", 6000)
    queue.add(100)
    fleet = [queue.register() for _ in range(5)]
    grant = queue.claim(1).only
    assert all(len(queue.claim(1, worker=worker).grants) == 1 for worker in fleet)

    queue.settle(refused(grant, "capacity", 30))

    assert [queue.claim(1, worker=worker).grants for worker in fleet] == [[]] * 5


def test_claude_code_queue_3_a_refusal_pauses_the_model_and_costs_the_tasks_nothing(queue: Queue) -> None:
    """claude-code-queue #3, #4: all queued tasks burnt their retries in one rate-limit window."""
    queue.model("m", 6000)
    keys = queue.add(50, max_attempts=2)
    refuse_until = 30.0
    flow = Flow(
        queue,
        lambda _: 0.2,
        settle=lambda grant: refused(grant, "quota", 10) if flow.now_s < refuse_until else complete(grant),
        maintenance=["promote"],
    )

    flow.run(120)

    assert {queue.task(key)["status"] for key in keys} == {"solved"}
    assert {queue.task(key)["attempts"] for key in keys} == {1}


def test_omniroute_495_a_wait_without_end_has_one(queue: Queue) -> None:
    """OmniRoute #495: waits of hours and more. A Retry-After of 1e18 s is believed for a year at the most."""
    queue.model("m", 6000)
    (key,) = queue.add()
    queue.settle(refused(queue.claim(1).only, "quota", 1e18))

    (until,) = queue.values("select cooldown_until from llmqueue.model_state")
    assert queue.now is not None
    assert until <= queue.now + timedelta(days=365)
    assert queue.value("select llmqueue.end_cooldown('m')")
    assert queue.task(key)["run_at"] <= queue.now + timedelta(days=366)


@pytest.mark.parametrize("state", ["cooldown", "paused", "delayed"])
def test_omniroute_495_a_deadline_ends_a_wait_for_a_model_that_takes_nothing(queue: Queue, state: str) -> None:
    """OmniRoute #495: the task's own deadline is what ends a wait of hours."""
    queue.model("m", 6000)
    (key,) = queue.add(deadline_at=queue.now + timedelta(hours=1))
    if state == "delayed":
        queue.settle(refused(queue.claim(1).only, "quota", 7200))
    elif state == "cooldown":
        queue.add(priority=1)
        queue.settle(refused(queue.claim(1).only, "quota", 7200))
    else:
        queue.model("m", 0)
    queue.advance(3700)

    for _ in range(3):
        queue.claim(10, maintenance=["heartbeat", "promote", "sweep", "prune"])

    assert queue.task(key)["status"] == "failed"


@pytest.mark.parametrize("slots", [61, pytest.param(500, marks=pytest.mark.slow), 5000])
def test_litellm_37539_a_large_batch_is_admitted_in_slices(queue: Queue, slots: int) -> None:
    """LiteLLM #37539: a batch larger than the limit of a minute was always refused."""
    queue.model("m", 60)
    queue.add(5000)
    flow = Flow(queue, slots=slots)

    flow.run(600)

    assert len(flow.grants) >= 0.98 * 600


def test_autolabel_433_one_bad_item_does_not_fail_those_beside_it(queue: Queue) -> None:
    """autolabel #433, TEI #145, bounty-challenge #18189: one bad item threw the answers of its whole batch away."""
    queue.model("m", 6000)
    queue.add(5)
    bad, *good = queue.claim(5).grants
    queue.owners_trigger("if new.answer = 'bad' then raise exception 'no'; end if")

    outcomes = queue.settle(complete(bad, "bad"), *[complete(grant) for grant in good])

    assert outcomes == ["quarantined", *["completed"] * 4]


# Field bugs that have no place here:
#
# where                        | what was seen                            | why not here
# -----------------------------|------------------------------------------|-------------------------------------------
# LiteLLM v3                   | counters per pod when Redis fails        | no second store: without the database
#                              |                                          | nothing is granted
# aiolimiter, Bifrost          | limits per process                       | a worker has no limiter of its own
# LiteLLM #34836, router       | limits and cooldowns read from a cache   | nothing is cached: each grant reads its row
# PyrateLimiter                | the time of what waits is advanced by    | what waits has no time; each grant reads
#                              | arithmetic, not read again               | the clock, under the lock
# Hatchet                      | windows are shortened by 10 ms           | 60 s and the guard, in whole cells
# Kong without disable_penalty | refused hits count: blocked for ever     | a refusal writes nothing
# langchain #26610             | one timeout for a whole batch            | one call, one timeout per task
# LiteLLM #33329               | weights depend on the order of a list    | shares are by name and by what was served
# SDKs of providers            | retries hidden below the limiter         | made behind the backend, out of our sight
