"""An owner's triggers and constraints meet the functions: one bad row stops nobody else (design I12)."""

from __future__ import annotations

from collections.abc import Callable

import psycopg
import pytest

from tests.support.sql import Grant, Queue, complete, retry

BAD = "new.prompt = 'bad' and new.status = '{}'"


def rejects(status: str) -> str:
    return f"if {BAD.format(status)} then raise exception 'not % this one', new.id; end if"


def test_a_row_whose_claim_raises_is_quarantined_and_the_others_run(queue: Queue) -> None:
    queue.model("m", 6000)
    first, (bad,), last = queue.add(2), queue.add(prompt="bad"), queue.add(2)
    queue.owners_trigger(rejects("running"))

    assert queue.claim(10).ids == [*first, *last]

    assert queue.quarantined() == {bad: "claim"}
    assert f"not {bad} this one" in queue.value("select reason from llmqueue.quarantine")
    assert queue.task(bad)["status"] == "unsolved"
    assert queue.values("select sum(calls) from llmqueue.ledger_grant") == [4]
    assert queue.count("llmqueue.attempt") == 4
    assert queue.claim(10).ids == []


@pytest.mark.parametrize("slots", [1, 2, 10])
def test_bad_rows_at_the_head_stop_no_lane(queue: Queue, slots: int) -> None:
    queue.model("m", 6000)
    bad = queue.add(5, prompt="bad")
    good = queue.add(3)
    queue.owners_trigger(rejects("running"))

    claimed = [key for _ in range(4) for key in queue.claim(slots).ids]

    assert claimed == good
    assert set(queue.quarantined()) == set(bad)


def test_a_row_whose_update_is_swallowed_is_quarantined(queue: Queue) -> None:
    queue.model("m", 6000)
    bad, good = queue.add(2, prompt="bad"), queue.add(2)
    queue.owners_trigger(f"if {BAD.format('running')} then return null; end if")

    assert [key for _ in range(4) for key in queue.claim(1).ids] == good

    assert queue.quarantined() == dict.fromkeys(bad, "claim")
    assert queue.values("select task_id from llmqueue.attempt order by fence") == good


def test_a_row_whose_status_is_put_back_is_not_run_over_and_over(queue: Queue) -> None:
    queue.model("m", 6000)
    (bad,), good = queue.add(prompt="bad"), queue.add(2)
    queue.owners_trigger(f"if {BAD.format('running')} then new.status := 'unsolved'; end if")

    assert [key for _ in range(4) for key in queue.claim(1).ids] == good
    assert queue.quarantined() == {bad: "claim"}


def test_a_restart_takes_the_note_away(queue: Queue) -> None:
    queue.model("m", 6000)
    (bad,) = queue.add(prompt="bad")
    queue.owners_trigger(rejects("running"))
    queue.claim(1)
    assert queue.quarantined() == {bad: "claim"}

    queue.rows("drop trigger theirs on tasks")
    queue.restart(bad)

    assert queue.quarantined() == {}
    assert queue.claim(1).ids == [bad]


def test_an_answer_that_cannot_be_written_is_kept_and_the_flush_goes_on(queue: Queue) -> None:
    queue.model("m", 6000)
    queue.add(2)
    queue.add(prompt="bad")
    queue.add(2)
    grants = queue.claim(10).grants
    queue.owners_trigger(rejects("solved"))

    outcomes = queue.settle(*(complete(grant, f"answer {grant.id}") for grant in grants))

    bad = grants[2]
    assert outcomes == ["completed", "completed", "quarantined", "completed", "completed"]
    assert queue.quarantined() == {bad.id: "complete"}
    attempt = queue.attempt(bad)
    assert (attempt["outcome"], attempt["answer"], attempt["error_class"]) == (
        "quarantined",
        f"answer {bad.id}",
        "P0001",
    )
    for grant in (grants[0], grants[4]):
        assert (queue.task(grant.id)["status"], queue.task(grant.id)["answer"]) == ("solved", f"answer {grant.id}")


def test_a_quarantined_running_task_can_be_restarted(queue: Queue) -> None:
    queue.model("m", 6000)
    queue.add(prompt="bad")
    grant = queue.claim(1).only
    queue.owners_trigger(rejects("solved"))
    assert queue.complete(grant) == "quarantined"

    queue.rows("drop trigger theirs on tasks")
    assert queue.restart(grant.id) == [grant.id]

    again = queue.claim(1).only
    assert (again.id, again.attempt_no, again.restarts) == (grant.id, 1, 1)
    assert queue.complete(again) == "completed"


def test_a_row_whose_promotion_raises_is_quarantined_and_the_others_are_promoted(queue: Queue) -> None:
    queue.model("m", 6000)
    queue.add()
    queue.add(prompt="bad")
    queue.add()
    grants = queue.claim(10).grants
    queue.settle(*(retry(grant, delay_s=1) for grant in grants))
    queue.owners_trigger(rejects("unsolved"))
    queue.advance(2)

    queue.promote()

    assert [queue.task(grant.id)["status"] for grant in grants] == ["unsolved", "delayed", "unsolved"]
    assert queue.quarantined() == {grants[1].id: "promote"}
    assert queue.promote() == 0


def test_a_row_whose_sweep_raises_is_quarantined_and_the_others_are_swept(queue: Queue) -> None:
    queue.model("m", 6000)
    queue.add()
    queue.add(prompt="bad")
    queue.add()
    grants = queue.claim(10).grants
    queue.owners_trigger(rejects("unsolved"))
    sweeper = queue.register()
    for _ in range(5):
        queue.advance(10)
        queue.beat(sweeper)

    queue.sweep(sweeper)

    assert [queue.task(grant.id)["status"] for grant in grants] == ["unsolved", "running", "unsolved"]
    assert queue.quarantined() == {grants[1].id: "sweep"}
    assert [queue.attempt(grant)["outcome"] for grant in grants] == ["lost", "quarantined", "lost"]
    assert queue.sweep(sweeper) == 0


def test_a_row_whose_expiry_raises_is_quarantined(queue: Queue) -> None:
    queue.model("m", 6000)
    (bad,) = queue.add(prompt="bad", deadline_at="2001-01-01 00:00+00")
    (good,) = queue.add()
    queue.owners_trigger(rejects("failed"))

    assert queue.claim(10).ids == [good]
    assert queue.quarantined() == {bad: "fail_unsent"}


def test_a_deferred_constraint_trigger_that_raises_sets_one_row_aside(queue: Queue) -> None:
    queue.model("m", 6000)
    (bad,), good = queue.add(prompt="bad"), queue.add(2)
    queue.rows(
        "create function check_it() returns trigger language plpgsql as "
        f"$f$ begin {rejects('running')}; return null; end $f$"
    )
    queue.rows(
        "create constraint trigger check_it after update on tasks deferrable initially deferred "
        "for each row execute function check_it()"
    )

    assert queue.claim(10).ids == good
    assert queue.quarantined() == {bad: "claim"}


def test_a_trigger_that_writes_our_columns_hurts_only_its_own_row(queue: Queue) -> None:
    queue.model("m", 6000)
    (touched,) = queue.add(prompt="bad")
    queue.owners_trigger("if new.prompt = 'bad' then new.fence := -7; new.attempts := 99; end if")
    (plain,) = queue.add()

    first = queue.claim(10)

    assert plain in first.ids
    outcomes = [queue.complete(grant) for grant in first.grants]
    assert queue.task(plain)["status"] == "solved"
    assert all(outcome in {"completed", "late"} for outcome in outcomes)
    assert queue.task(touched)["status"] in {"solved", "unsolved"}


def test_an_updating_trigger_sees_each_step_once(queue: Queue) -> None:
    queue.model("m", 6000)
    queue.rows("create table history (id bigint, status text)")
    queue.owners_trigger("insert into history values (new.id, new.status)", "after update")
    (key,) = queue.add()

    queue.complete(queue.claim(1).only)

    assert queue.rows("select * from history") == [{"id": key, "status": "running"}, {"id": key, "status": "solved"}]


@pytest.mark.parametrize("state", ["53300", "40P01", "55P03", "42501"])
def test_what_is_not_the_rows_fault_sets_nothing_aside(queue: Queue, state: str) -> None:
    queue.model("m", 6000)
    queue.add(3)
    queue.owners_trigger(f"raise exception 'not now' using errcode = '{state}'")

    with pytest.raises(psycopg.DatabaseError) as raised, queue.conn.transaction():
        queue.claim(10)

    assert raised.value.sqlstate == state
    assert queue.quarantined() == {}
    assert queue.count("llmqueue.attempt") == 0
    assert queue.count("llmqueue.ledger_grant") == 0


def test_a_deleted_task_keeps_its_answer_in_the_log(queue: Queue) -> None:
    queue.model("m", 6000)
    queue.add(2)
    gone, other = queue.claim(2).grants

    queue.rows("delete from tasks where id = %s", gone.id)

    assert queue.settle(complete(gone, "for nobody"), complete(other)) == ["late", "completed"]
    assert queue.attempt(gone)["answer"] == "for nobody"


@pytest.mark.parametrize("verb", ["retry", "bury", "release"])
def test_other_ends_of_a_deleted_task_are_harmless(queue: Queue, verb: str) -> None:
    queue.model("m", 6000)
    queue.add()
    grant = queue.claim(1).only
    queue.rows("delete from tasks")

    getattr(queue, verb)(grant)

    assert queue.attempt(grant)["ended_at"] is not None
    assert queue.count("tasks") == 0


def test_truncate_while_running_leaves_a_queue_that_works(queue: Queue) -> None:
    queue.model("m", 6000)
    queue.add(3)
    grants = queue.claim(3).grants

    queue.rows("truncate tasks")
    fresh = queue.add(2)

    assert queue.settle(*(complete(grant) for grant in grants)) == ["late"] * 3
    assert queue.claim(5).ids == fresh


def test_tasks_deleted_while_running_are_swept_without_a_trace(queue: Queue) -> None:
    queue.model("m", 6000)
    queue.add()
    grant = queue.claim(1).only
    queue.rows("delete from tasks")

    queue.lose(grant)

    assert queue.count("llmqueue.worker") > 0
    assert queue.value("select count(*) from llmqueue.attempt where ended_at is null") == 0


NOTES_WHAT_IT_SEES = (
    "if new.status <> old.status then insert into seen (status, so_many) "
    "select new.status, count(*) from tasks where status = new.status; end if"
)


@pytest.mark.parametrize("end", [complete, retry])
def test_an_after_trigger_sees_one_row_change_after_the_other(
    queue: Queue, end: Callable[[Grant], dict[str, object]]
) -> None:
    queue.model("m", 6000)
    queue.rows("create table seen (status text, so_many bigint)")
    queue.add(3)
    queue.owners_trigger(NOTES_WHAT_IT_SEES, "after update")

    grants = queue.claim(10).grants
    queue.settle(*[end(grant) for grant in grants])

    assert queue.values("select so_many from seen where status = 'running'") == [1, 2, 3]
    assert queue.values("select so_many from seen where status <> 'running'") == [1, 2, 3]


def test_an_after_trigger_that_cancels_the_others_lets_one_end_and_keeps_their_answers(queue: Queue) -> None:
    queue.model("m", 6000)
    first, *others = queue.add(3)
    queue.owners_trigger(
        "if new.status = 'solved' then update tasks set status = 'cancelled' where status = 'running'; end if",
        "after update",
    )

    grants = queue.claim(10).grants
    outcomes = queue.settle(*[complete(grant) for grant in grants])

    assert outcomes == ["completed", "late", "late"]
    assert queue.task(first)["status"] == "solved"
    assert [queue.task(key)["status"] for key in others] == ["cancelled", "cancelled"]
    assert queue.quarantined() == {}


def test_an_after_trigger_that_cancels_the_others_at_the_claim_sets_none_aside(queue: Queue) -> None:
    queue.model("m", 6000)
    first, *others = queue.add(3)
    queue.owners_trigger(
        "if new.status = 'running' then update tasks set status = 'cancelled' where status = 'unsolved'; end if",
        "after update",
    )

    assert queue.claim(10).ids == [first]

    assert [queue.task(key)["status"] for key in others] == ["cancelled", "cancelled"]
    assert queue.quarantined() == {}
    assert queue.values("select sum(calls) from llmqueue.ledger_grant") == [1]


def test_a_trigger_that_swallows_an_end_is_asked_once(queue: Queue) -> None:
    queue.model("m", 6000)
    queue.rows("create sequence asked")
    (bad,), (good,) = queue.add(prompt="bad"), queue.add()
    queue.owners_trigger(f"if {BAD.format('solved')} then perform nextval('asked'); return null; end if")

    grants = queue.claim(10).grants
    outcomes = queue.settle(*[complete(grant) for grant in grants])

    assert outcomes == ["quarantined", "completed"]
    assert queue.value("select last_value from asked where is_called") == 1
    assert queue.quarantined() == {bad: "complete"}
    assert queue.task(good)["status"] == "solved"


IS_BAD = "prompt = 'bad' and status = 'solved'"
SET_BACK = (
    f"if exists (select from tasks where {IS_BAD}) then update tasks set status = 'running' where {IS_BAD}; end if"
)


@pytest.mark.parametrize(
    ("body", "when"),
    [
        ("if new.prompt = 'bad' and new.status = 'solved' then new.status := 'running'; end if", "before update"),
        (SET_BACK, "after update"),
        (SET_BACK, "after update for each statement"),
    ],
)
@pytest.mark.parametrize("others", [0, 2])
@pytest.mark.parametrize("is_late", [False, True])
def test_a_row_that_a_trigger_sets_back_at_its_end_is_quarantined(
    queue: Queue, body: str, when: str, others: int, *, is_late: bool
) -> None:
    queue.model("m", 6000)
    (bad,), good = queue.add(prompt="bad"), queue.add(others)
    event, _, level = when.partition(" for each ")
    queue.rows(f"create function theirs() returns trigger language plpgsql as $f$ begin {body}; return new; end $f$")
    queue.rows(f"create trigger theirs {event} on tasks for each {level or 'row'} execute function theirs()")

    grants = queue.claim(10).grants
    if is_late:
        queue.lose(*grants)
    outcomes = queue.settle(*[complete(grant) for grant in grants], worker=grants[0].worker)

    assert outcomes == ["quarantined", *["completed"] * others]
    assert queue.quarantined() == {bad: "complete"}
    assert [queue.task(key)["status"] for key in good] == ["solved"] * others


def test_a_row_whose_key_changes_at_the_claim_is_quarantined(queue: Queue) -> None:
    queue.model("m", 6000)
    (bad,), (good,) = queue.add(prompt="bad"), queue.add()
    queue.owners_trigger(f"if {BAD.format('running')} then new.id := new.id + 1000; end if")

    assert queue.claim(10).ids == [good]

    assert queue.quarantined() == {bad: "claim"}
    assert queue.values("select id from tasks where status = 'running'") == [good]


def test_a_row_whose_key_changes_at_its_end_costs_no_other_answer(queue: Queue) -> None:
    queue.model("m", 6000)
    (bad,), (good,), (cancelled,) = queue.add(prompt="bad"), queue.add(), queue.add()
    queue.owners_trigger(f"if {BAD.format('solved')} then new.id := new.id + 1000; end if")

    grants = queue.claim(10).grants
    queue.cancel(cancelled)
    outcomes = queue.settle(*[complete(grant) for grant in grants])

    assert outcomes == ["completed", "completed", "late"]
    assert queue.task(bad + 1000)["status"] == "solved"
    assert queue.task(good)["status"] == "solved"


def test_an_after_trigger_that_puts_the_others_off_at_the_claim_is_obeyed(queue: Queue) -> None:
    queue.model("m", 6000)
    first, *others = queue.add(3)
    queue.owners_trigger(
        "if new.status = 'running' then update tasks set run_at = new.started_at + interval '1 h' "
        "where status = 'unsolved'; end if",
        "after update",
    )

    assert queue.claim(10).ids == [first]

    assert [queue.task(key)["status"] for key in others] == ["unsolved", "unsolved"]
    assert queue.quarantined() == {}


def test_the_triggers_of_a_table_that_was_renamed_are_known(queue: Queue) -> None:
    queue.model("m")
    queue.add()
    queue.owners_trigger("null", "after update")
    queue.rows("alter table tasks rename to jobs")

    assert queue.value("select has_row_after from llmqueue_internal.update_triggers()")
    read = """select llmqueue_internal.entries_read(array(
        select oid from pg_class where relname in ('llmqueue_ready', 'llmqueue_oldest')))"""
    entries = queue.value(read)
    assert queue.value("select count(*) from llmqueue.claim(%s, null, 1)", queue.worker) == 2
    assert queue.value(read) > entries
