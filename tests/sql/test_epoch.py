"""check_epoch: after a failover or a restore there is no grant for a window, and no fence is used twice."""

from __future__ import annotations

from typing import Any

import pytest

from tests.support.sql import Queue, complete

MARGIN = 1_000_000_000
LOST = {
    "a promoted standby": ("update llmqueue.epoch set timeline = '000000FF'", "timeline"),
    "a dump restored elsewhere": ("update llmqueue.epoch set system_identifier = 1", "system"),
}


def check(queue: Queue, seen: int | None = None) -> int:
    return int(queue.value("select llmqueue_internal.check_epoch(%s)", seen))


def epochs(queue: Queue) -> list[dict[str, Any]]:
    return queue.rows("select * from llmqueue.epoch order by epoch_no")


def lose_the_last_grants(queue: Queue, upto: int) -> None:
    """What an older copy of the data has forgotten: the attempts and tasks after a fence, and the sequence."""
    queue.rows("delete from llmqueue.attempt where fence > %s", upto)
    queue.rows("update llmqueue.task set status = 'unsolved', fence = null where fence > %s", upto)
    queue.rows("delete from llmqueue.ledger_grant")
    queue.rows("delete from llmqueue.ledger_cell")
    queue.rows("select setval('llmqueue.fence_seq', %s)", upto)


def test_the_first_epoch_is_that_of_the_server_and_changes_nothing(queue: Queue) -> None:
    queue.model("m")
    queue.add(3)
    queue.claim(3)

    assert check(queue) == 1

    [first] = epochs(queue)
    assert (first["because"], first["fence_floor"]) == ("installed", 0)
    assert first["system_identifier"] == queue.value("select system_identifier from pg_control_system()")
    assert first["timeline"] == queue.value("select left(pg_walfile_name(pg_current_wal_lsn()), 8)")
    assert queue.values("select began_at from llmqueue.epoch_status") == [None]


@pytest.mark.parametrize("loss", LOST)
def test_nothing_is_granted_for_a_window_after(loss: str, queue: Queue) -> None:
    queue.model("m", 600)
    queue.add(10)
    queue.rows(LOST[loss][0])

    assert queue.claim(1).grants == []

    last = epochs(queue)[-1]
    assert (last["epoch_no"], last["because"], last["began_at"]) == (2, LOST[loss][1], queue.now)
    queue.advance(60)
    assert queue.claim(1).reasons == {"m": "rpm"}
    queue.advance(1)
    assert len(queue.claim(1).grants) == 1
    assert queue.now > last["quiet_until"]


@pytest.mark.parametrize("loss", LOST)
def test_fences_jump_beyond_what_anybody_was_given(loss: str, queue: Queue) -> None:
    queue.model("m", 600)
    queue.add(2)
    before = queue.claim(1).only
    queue.rows(LOST[loss][0])

    queue.claim(1)
    queue.advance(61)

    assert queue.claim(1).only.fence > before.fence + MARGIN


def test_a_fence_that_the_server_does_not_know_proves_a_loss(queue: Queue) -> None:
    queue.model("m", 6000)
    queue.add(4)
    known, lost = queue.claim(1).only, queue.claim(2).grants[-1]
    lose_the_last_grants(queue, upto=known.fence)

    assert queue.claim(1).grants == []

    last = epochs(queue)[-1]
    assert (last["because"], last["fence_floor"] > lost.fence + MARGIN - 1) == ("fence", True)


def test_a_sequence_that_ran_ahead_hides_no_loss(queue: Queue) -> None:
    """After a crash it is up to 32 ahead of what was given: the newest attempt tells."""
    queue.model("m", 6000)
    queue.add(4)
    known = queue.claim(1).only
    queue.claim(1)
    lose_the_last_grants(queue, upto=known.fence)
    queue.rows("select setval('llmqueue.fence_seq', %s)", known.fence + 32)

    assert queue.claim(1).grants == []
    assert epochs(queue)[-1]["because"] == "fence"


def test_a_loss_is_proven_once(queue: Queue) -> None:
    """The worker goes on showing the lost fence until it is given another: that must not fill the ledger anew."""
    queue.model("m", 6000)
    queue.add(4)
    known = queue.claim(1).only
    queue.claim(1)
    lose_the_last_grants(queue, upto=known.fence)

    for _ in range(4):
        queue.claim(1)
        queue.advance(20)

    assert len(epochs(queue)) == 2
    assert len(queue.claim(1).grants) == 1


def test_a_pruned_attempt_log_proves_nothing(queue: Queue) -> None:
    queue.model("m", 6000)
    queue.add(2)
    queue.complete(queue.claim(1).only)
    queue.rows("delete from llmqueue.attempt")

    assert len(queue.claim(1).grants) == 1
    assert len(epochs(queue)) == 1


@pytest.mark.parametrize("seen", ["1e40", "-1", '"x"', "1000000000000001", "null", "{}"])
def test_a_fence_that_makes_no_sense_proves_nothing(queue: Queue, seen: str) -> None:
    queue.model("m")
    queue.add()

    found = queue.rows(
        "select * from llmqueue.claim(%s, null, 1, '{}', 0, 0, %s::jsonb)",
        queue.worker,
        f'{{"seen": {seen}}}',
    )

    assert len(found) == 2
    assert len(epochs(queue)) == 1


def test_a_claim_says_in_which_epoch_it_was_made(queue: Queue) -> None:
    queue.model("m", 600)
    queue.add()
    query = "select claim_state ->> 'epoch' from llmqueue.claim(%s, null, 1) where claim_state is not null"
    assert queue.value(query, queue.worker) == "1"

    queue.rows(LOST["a promoted standby"][0])

    assert queue.value(query, queue.worker) == "2"


def test_nobody_sweeps_within_a_lease_of_a_new_epoch(queue: Queue) -> None:
    """A promoted standby started long ago, and its heartbeats are as old as the outage."""
    queue.model("m", 6000)
    queue.add()
    dead = queue.claim(1).only
    sweeper = queue.register()
    for _ in range(3):
        queue.advance(10)
        queue.beat(sweeper)
    queue.rows(LOST["a promoted standby"][0])

    queue.rows("select llmqueue.maintain(%s, '{heartbeat,sweep}', 0)", sweeper)
    assert queue.task(dead.id)["status"] == "running"

    for _ in range(2):
        queue.advance(10)
        queue.beat(sweeper)
    assert queue.sweep(sweeper) == 1


def test_a_late_answer_of_a_lost_claim_is_kept_and_overwrites_nothing(queue: Queue) -> None:
    queue.model("m", 6000)
    key, other = queue.add(2)
    known = queue.claim(1).only
    lost = queue.claim(1).only
    lose_the_last_grants(queue, upto=known.fence)
    queue.claim(1)

    assert queue.settle({**complete(lost, "paid for"), "model": "m"}) == ["late"]
    assert queue.settle({**complete(lost, "sent twice"), "model": "m"}) == ["late"]

    assert (known.id, lost.id) == (key, other)
    task, kept = queue.task(lost.id), queue.attempt(lost)
    assert (task["status"], task["answer"]) == ("unsolved", None)
    assert (kept["answer"], kept["outcome"], kept["worker"]) == ("paid for", "late", queue.worker)
    assert kept["granted_at"] <= epochs(queue)[-1]["began_at"]
    queue.advance(61)
    queue.complete(queue.claim(1).only, "again")
    assert queue.task(lost.id)["answer"] == "again"


def test_a_lost_answer_that_is_settled_first_proves_the_loss(queue: Queue) -> None:
    queue.model("m", 6000)
    queue.add(3)
    known, *_, last = queue.claim(3).grants
    lose_the_last_grants(queue, upto=known.fence)

    assert queue.settle({**complete(last, "paid for"), "model": "m"}) == ["late"]

    assert epochs(queue)[-1]["because"] == "fence"
    assert queue.claim(3).grants == []


def test_a_top_up_notices_a_loss_as_a_claim_does(queue: Queue) -> None:
    queue.model("m", 6000, tpm=60_000, token_mode="input")
    queue.add()
    grant = queue.claim(1).only
    queue.rows(LOST["a promoted standby"][0])

    assert queue.value("select llmqueue.top_up(%s, %s, 500)", queue.worker, grant.fence) is False

    assert len(epochs(queue)) == 2


@pytest.mark.parametrize("fence", [-5, 0, 10**15, 2**63 - 1])
def test_answers_under_fences_that_nobody_was_given_leave_nothing_behind(fence: int, queue: Queue) -> None:
    queue.model("m", 6000)
    queue.add()
    grant = queue.claim(1).only
    given = {**complete(grant, "nonsense"), "fence": fence, "model": "m"}

    queue.settle(given)

    assert queue.values("select fence from llmqueue.attempt where fence <> %s and outcome is null", grant.fence) == []
    assert check(queue) == len(epochs(queue)), "and the next loss is found as ever"
    assert queue.value("select max(fence_floor) from llmqueue.epoch") < 10**18


def test_a_late_answer_under_a_fence_of_somebody_else_changes_nothing(queue: Queue) -> None:
    """Before anybody who knows of the loss is back a fence may be given twice: the worker tells them apart."""
    queue.model("m", 6000)
    queue.add(2)
    known = queue.claim(1).only
    lost = queue.claim(1).only
    lose_the_last_grants(queue, upto=known.fence)
    newcomer = queue.register()
    again = queue.claim(1, worker=newcomer).only
    assert again.fence == lost.fence

    assert queue.settle(complete(lost, "of the lost claim")) == ["unknown"]

    assert queue.attempt(again)["outcome"] is None
    assert queue.task(again.id)["answer"] is None
    assert queue.complete(again, "right") == "completed"


def test_a_server_that_takes_no_writes_says_so(queue: Queue) -> None:
    queue.rows("set transaction_read_only = on")

    with pytest.raises(Exception, match="takes no writes") as raised:
        queue.claim(1)

    assert getattr(raised.value, "sqlstate", None) == "25006"
