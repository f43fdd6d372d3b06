"""Two sessions meet wherever one may hold a lock that the other needs: neither waits, and nothing is lost."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta

import psycopg
import pytest

from tests.support.sessions import Sessions, sessions
from tests.support.sql import Queue, complete, release

PATIENCE_S = 20.0


@pytest.fixture
def two(installed: str) -> Iterator[Sessions]:
    with sessions(installed) as opened:
        yield opened


@pytest.fixture
def queue(two: Sessions) -> Queue:
    """The first worker; two models, one second's worth of calls each."""
    first = two.queue()
    first.model("a", 6000)
    first.model("b", 6000)
    return first


def holding(two: Sessions, statement: str, *args: object) -> psycopg.Connection[tuple[object, ...]]:
    """Yields an open transaction of another session that has run this statement."""
    conn = two.connect()
    conn.autocommit = False
    conn.execute(statement.encode(), args)
    return conn


def impatient(queue: Queue) -> Queue:
    """Lets every wait for a row raise; a claim sets a lock_timeout of its own for the one lock it may wait for."""
    queue.rows("set lock_timeout = '50ms'")
    return queue


def hold_model(two: Sessions, model: str) -> psycopg.Connection[tuple[object, ...]]:
    return holding(two, "select pg_advisory_xact_lock(llmqueue_internal.lock_space(), hashtext(%s))", model)


def test_two_claims_of_the_pool_by_two_models_share_it(two: Sessions, queue: Queue) -> None:
    keys = queue.add(10)
    queue.conn.autocommit = False
    first = queue.claim(4, ["a"]).ids

    second = impatient(two.queue()).claim(10, ["b"]).ids
    queue.conn.commit()

    assert first == keys[:4]
    assert second == keys[4:]


def test_two_claims_of_one_model_take_turns(two: Sessions, queue: Queue) -> None:
    keys = queue.add(10)
    other = two.queue()
    queue.conn.autocommit = False
    first = queue.claim(4, ["a"]).ids

    second = two.start(lambda: other.claim(10, ["a"]))
    two.wait_until_waiting(other.conn)
    queue.conn.commit()

    claimed = second.result(PATIENCE_S)
    # A slow machine may have let the 200 ms pass: then nothing was taken, and it says so.
    assert claimed.ids == keys[4:] or claimed.reasons == {"a": "contended"}
    assert first == keys[:4]


def test_one_contended_model_is_waited_for_briefly_and_then_named(two: Sessions, queue: Queue) -> None:
    queue.add()
    hold_model(two, "a")
    queue.rows("set lock_timeout = '7s'")

    claim = two.start(lambda: queue.claim(1, ["a"]))
    two.wait_until_waiting(queue.conn)

    claimed = claim.result(PATIENCE_S)
    assert (claimed.grants, claimed.reasons) == ([], {"a": "contended"})
    assert queue.value("show lock_timeout") == "7s"


@pytest.mark.parametrize("models", [["a", "b"], None])
def test_of_several_models_a_contended_one_is_skipped_at_once(
    two: Sessions, queue: Queue, models: list[str] | None
) -> None:
    keys = queue.add(3)
    hold_model(two, "a")
    # Any wait for an advisory lock would raise here: the claim sets a lock_timeout of its own only when it may wait.
    queue.rows(
        "create or replace function llmqueue_internal.lock_model(p_model text, p_may_wait boolean) returns boolean "
        "language plpgsql as $$ "
        "begin if p_may_wait is distinct from false then raise exception 'would wait'; end if; "
        "return pg_try_advisory_xact_lock(llmqueue_internal.lock_space(), hashtext(p_model)); end $$"
    )

    claimed = queue.claim(10, models)

    assert sorted(claimed.ids) == keys
    assert {grant.model for grant in claimed.grants} == {"b"}
    assert claimed.reasons.get("a", "contended") == "contended"


def test_two_claims_of_all_models_never_deadlock(two: Sessions, queue: Queue) -> None:
    queue.add(50)
    hold_model(two, "a")
    claimers = [two.queue() for _ in range(4)]

    running = [two.start(lambda claimer=claimer: [claimer.claim(1) for _ in range(10)]) for claimer in claimers]  # type: ignore[misc]

    taken = [key for future in running for claimed in future.result(PATIENCE_S) for key in claimed.ids]
    assert len(set(taken)) == len(taken)


def test_a_task_row_that_somebody_holds_is_passed_over(two: Sessions, queue: Queue) -> None:
    first, second, third = queue.add(3)
    owner = holding(two, "update tasks set user_id = 'held' where id = %s", first)

    assert impatient(queue).claim(2, ["a"]).ids == [second, third]
    assert queue.claim(1, ["a"]).grants == []
    owner.commit()
    assert queue.claim(1, ["a"]).ids == [first]


def test_held_rows_of_the_models_lane_hide_neither_pool_nor_lane(two: Sessions, queue: Queue) -> None:
    held = queue.add(5, model="a", created_at="2001-01-01 00:00+00")
    later, pool = queue.add(model="a")[0], queue.add()[0]
    lower = queue.add(priority=-1)[0]
    holding(two, "select from tasks where id = any(%s) for update", held)

    assert set(impatient(queue).claim(2, ["a"]).ids) == {later, pool}
    assert queue.claim(5, ["a"]).ids == [lower]


@pytest.mark.parametrize(("held", "free"), [("a", None), (None, "a")])
def test_a_lane_that_is_held_as_a_whole_does_not_hide_the_other_from_a_single_slot(
    two: Sessions, queue: Queue, held: str | None, free: str | None
) -> None:
    holding(two, "select from tasks where id = any(%s) for update", queue.add(5, model=held))
    impatient(queue)

    for _ in range(10):  # which lane is looked at first is drawn anew each time
        (task,) = queue.add(model=free)
        assert queue.claim(1, ["a"]).ids == [task]


def test_a_childs_foreign_key_does_not_hide_its_task(two: Sessions, queue: Queue) -> None:
    queue.rows("create table runs (task bigint references tasks)")
    (key,) = queue.add()
    holding(two, "insert into runs values (%s)", key)

    grant = impatient(queue).claim(1).only

    assert queue.complete(grant) == "completed"


def test_a_task_not_committed_yet_is_found_after_its_commit(two: Sessions, queue: Queue) -> None:
    source = holding(two, "insert into tasks (prompt, created_at) values ('early', '2001-01-01 00:00+00')")
    (late,) = queue.add()
    assert queue.claim(5).ids == [late]

    source.commit()

    assert [grant.prompt for grant in queue.claim(5).grants] == ["early"]


@pytest.mark.parametrize("verb", ["complete", "retry", "bury", "release"])
def test_a_row_in_somebodys_open_transaction_is_busy_and_nobody_waits(two: Sessions, queue: Queue, verb: str) -> None:
    queue.add(2)
    held, free = queue.claim(2).grants
    owner = holding(two, "update tasks set user_id = 'held' where id = %s", held.id)
    impatient(queue)

    assert getattr(queue, verb)(held) == "busy"
    assert queue.complete(free) == "completed"
    assert queue.attempt(held)["outcome"] is None
    owner.commit()

    assert getattr(queue, verb)(held) not in {"busy", "unknown", "late"}
    assert queue.task(held.id)["user_id"] == "held"


def test_a_row_whose_deletion_is_not_committed_is_busy(two: Sessions, queue: Queue) -> None:
    queue.add()
    grant = queue.claim(1).only
    owner = holding(two, "delete from tasks")

    assert impatient(queue).complete(grant) == "busy"
    owner.commit()

    assert queue.complete(grant, "for nobody") == "late"
    assert queue.attempt(grant)["answer"] == "for nobody"


def sweeper_of_the_dead(two: Sessions, queue: Queue) -> Queue:
    """Returns a worker with an hour of heartbeats, ten minutes from now, since when no other has sent any."""
    sweeper = two.queue()
    sweeper.now = sweeper.value("select clock_timestamp() + interval '10 minutes'")
    sweeper.rows(
        "update llmqueue.worker set heartbeat_at = %s, beating_since = now() - interval '1 hour', lease_s = 60 "
        "where worker = %s",
        sweeper.now,
        sweeper.worker,
    )
    return sweeper


def test_a_sweep_passes_over_what_a_settlement_holds(two: Sessions, queue: Queue) -> None:
    queue.add(2)
    settling, lost = queue.claim(2).grants
    sweeper = sweeper_of_the_dead(two, queue)
    queue.conn.autocommit = False
    assert queue.complete(settling, "just in time") == "completed"

    assert impatient(sweeper).sweep() == 1
    queue.conn.commit()

    assert (queue.task(settling.id)["status"], queue.task(settling.id)["answer"]) == ("solved", "just in time")
    assert queue.attempt(settling)["outcome"] == "completed"
    assert queue.task(lost.id)["status"] == "unsolved"


def test_a_settlement_that_meets_a_sweep_is_busy_and_then_accepted(two: Sessions, queue: Queue) -> None:
    queue.add()
    grant = queue.claim(1).only
    sweeper = sweeper_of_the_dead(two, queue)
    sweeper.conn.autocommit = False
    assert sweeper.sweep() == 1

    assert impatient(queue).complete(grant, "paid") == "busy"
    sweeper.conn.commit()

    assert queue.attempt(grant)["outcome"] == "lost"
    assert queue.complete(grant, "paid") == "completed"
    assert queue.task(grant.id)["answer"] == "paid"


def test_a_sweep_leaves_alone_what_an_owner_holds(two: Sessions, queue: Queue) -> None:
    queue.add()
    grant = queue.claim(1).only
    sweeper = sweeper_of_the_dead(two, queue)
    owner = holding(two, "update tasks set user_id = 'held' where id = %s", grant.id)

    assert impatient(sweeper).sweep() == 0
    assert queue.attempt(grant)["outcome"] is None
    owner.rollback()

    assert sweeper.sweep() == 1


def test_two_sweeps_take_each_task_once(two: Sessions, queue: Queue) -> None:
    queue.add(6)
    queue.claim(6)
    sweeper = sweeper_of_the_dead(two, queue)
    other = sweeper_of_the_dead(two, queue)
    sweeper.conn.autocommit = False
    assert sweeper.value("select llmqueue_internal.sweep(%s, 4)", sweeper.worker) == 4

    assert impatient(other).sweep() == 2
    sweeper.conn.commit()


def test_a_restart_under_way_makes_an_answer_busy_and_then_late(two: Sessions, queue: Queue) -> None:
    queue.add()
    grant = queue.claim(1).only
    queue.cancel(grant.id)
    operator = holding(two, "select llmqueue.restart(%s)", [grant.id])

    assert impatient(queue).complete(grant, "old") == "busy"
    operator.commit()

    assert queue.complete(grant, "old") == "late"
    assert queue.task(grant.id)["status"] == "unsolved"


def test_a_restart_of_a_task_whose_answer_is_under_way_leaves_it_alone(two: Sessions, queue: Queue) -> None:
    queue.add()
    grant = queue.claim(1).only
    queue.conn.autocommit = False
    queue.complete(grant, "first")

    assert impatient(two.queue()).restart(grant.id) == []
    queue.conn.commit()

    assert (queue.task(grant.id)["status"], queue.task(grant.id)["answer"]) == ("solved", "first")


def test_a_promotion_passes_over_what_somebody_holds(two: Sessions, queue: Queue) -> None:
    queue.add(2, status="delayed", run_at="2001-01-01 00:00+00")
    (held, free) = queue.values("select id from tasks order by id")
    holding(two, "select from tasks where id = %s for update", held)

    assert impatient(queue).promote() == 1
    assert queue.task(free)["status"] == "unsolved"


def test_a_changed_limit_holds_from_the_first_grant_after_its_commit(two: Sessions, queue: Queue) -> None:
    queue.model("a", 600)
    queue.add(50)
    assert len(queue.claim(5, ["a"]).grants) == 5
    operator = holding(two, "update llmqueue.model_config set rpm = 1 where model = 'a'")

    assert len(impatient(queue).claim(2, ["a"]).grants) == 2
    operator.commit()

    assert queue.claim(2, ["a"]).reasons == {"a": "rpm"}


def test_a_change_that_commits_while_a_claim_waits_for_the_lock_holds_for_it(two: Sessions, queue: Queue) -> None:
    queue.add(50)
    holder = hold_model(two, "a")
    # Longer than 200 ms, so that only the COMMIT below ends the wait.
    patient_lock(queue)
    claim = two.start(lambda: queue.claim(5, ["a"]))
    two.wait_until_waiting(queue.conn)

    two.queue().model("a", 0)
    holder.commit()

    assert claim.result(PATIENCE_S).reasons == {"a": "paused"}


def patient_lock(queue: Queue) -> None:
    """Lets claims wait for a model's lock as long as it takes, with the text of lock_model() otherwise as it is."""
    source = queue.value("select pg_get_functiondef('llmqueue_internal.lock_model(text, boolean)'::regprocedure)")
    queue.rows(source.replace("200ms", "20s"))


def test_the_clock_is_read_after_the_lock(two: Sessions, queue: Queue) -> None:
    queue.add()
    holder = hold_model(two, "a")
    patient_lock(queue)
    claim = two.start(lambda: queue.claim(1, ["a"]))
    two.wait_until_waiting(queue.conn)
    before = two.queue().value("select clock_timestamp()")

    holder.commit()

    grant = claim.result(PATIENCE_S).only
    assert queue.attempt(grant)["granted_at"] > before


def test_a_claim_sees_every_grant_that_was_made_under_the_lock_before(two: Sessions, queue: Queue) -> None:
    queue.model("a", 2)
    queue.add(10)
    patient_lock(queue)
    queue.conn.autocommit = False
    assert len(queue.claim(2, ["a"]).grants) == 2
    others = [two.queue() for _ in range(3)]
    waiting = [two.start(lambda other=other: other.claim(2, ["a"])) for other in others]  # type: ignore[misc]
    for other in others:
        two.wait_until_waiting(other.conn)

    queue.conn.commit()

    assert [future.result(PATIENCE_S).reasons for future in waiting] == [{"a": "rpm"}] * 3
    assert queue.count("llmqueue.attempt") == 2


def test_a_refund_needs_no_lock_of_the_model(two: Sessions, queue: Queue) -> None:
    queue.add()
    grant = queue.claim(1, ["a"]).only
    hold_model(two, "a")

    assert impatient(queue).release(grant) == "released"


def test_a_refund_that_meets_a_step_back_of_the_clock_gives_nothing(two: Sessions, queue: Queue) -> None:
    queue.model("a", 2)
    queue.add(4)
    queue.now = queue.value("select clock_timestamp()")
    grants = queue.claim(2, ["a"]).grants
    queue.conn.autocommit = False
    queue.settle(*(release(grant) for grant in grants))
    other = two.queue()
    other.now = queue.now - timedelta(seconds=100)

    filling = two.start(lambda: other.rows("select llmqueue_internal.fill_ledger('a')"))
    two.wait_until_waiting(other.conn)
    queue.conn.commit()
    filling.result(PATIENCE_S)

    assert queue.count("llmqueue.ledger_cell where calls < 0") == 0


def test_truncate_waits_for_a_claim_and_then_nothing_is_left(two: Sessions, queue: Queue) -> None:
    queue.add(3)
    queue.conn.autocommit = False
    grant = queue.claim(1).only
    owner = two.connect()

    truncate = two.start(lambda: owner.execute("truncate tasks"))
    two.wait_until_waiting(owner)
    queue.conn.commit()
    truncate.result(PATIENCE_S)

    queue.conn.autocommit = True
    assert queue.settle(complete(grant)) == ["late"]
    assert queue.claim(5).grants == []
