"""Cooldown: the effect of a 429, 503 or 529 on its model and its task, and the end of the cooldown (design I11)."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from tests.support.flow import Flow, refused
from tests.support.sql import Grant, Queue, complete


def ready(queue: Queue, how_many: int = 100, **columns: Any) -> None:
    queue.model("m", **{"rpm": 6000, **columns})
    queue.add(how_many)


def refuse(queue: Queue, *grants: Grant, pause_s: float | None = None, refusal: str = "quota") -> None:
    for grant in grants:
        queue.settle(refused(grant, refusal, pause_s), worker=grant.worker)


def state(queue: Queue, model: str = "m") -> dict[str, Any]:
    (row,) = queue.rows("select * from llmqueue.model_state where model = %s", model)
    return row


def closed_for_s(queue: Queue) -> float:
    assert queue.now is not None
    until = state(queue)["cooldown_until"]
    return 0.0 if until is None else float((until - queue.now).total_seconds())


def reopen(queue: Queue) -> Grant:
    """Waits for the end of the pause and returns the probe."""
    queue.advance(closed_for_s(queue))
    return queue.claim(10).only


def test_a_refusal_closes_the_model_for_every_worker_and_says_for_how_long(queue: Queue) -> None:
    ready(queue)
    grant = queue.claim(1).only

    refuse(queue, grant, pause_s=30)

    for worker in (queue.worker, queue.register()):
        claimed = queue.claim(10, worker=worker, hot_slots=2)
        assert (claimed.grants, claimed.reasons) == ([], {"m": "cooldown"})
        assert claimed.retry_in_s["m"] == pytest.approx(30, abs=1e-3)
    assert state(queue)["cooldown_reason"] == "rate_limited: no more"
    queue.advance(29.999)
    assert queue.claim(10).grants == []
    queue.advance(0.001)
    assert len(queue.claim(10).grants) == 1


def test_hot_tasks_wait_for_a_closed_model_too(queue: Queue) -> None:
    ready(queue, 1)
    refuse(queue, queue.claim(1).only, pause_s=30)
    queue.add(priority=100)

    assert queue.claim(10, hot_slots=10).reasons == {"m": "cooldown"}


def test_one_closed_model_closes_no_other(queue: Queue) -> None:
    ready(queue)
    queue.model("n", 6000)
    refuse(queue, queue.claim(1, ["m"]).only, pause_s=30)

    claimed = queue.claim(200)

    assert {grant.model for grant in claimed.grants} == {"n"}
    assert len(claimed.grants) >= 99
    assert claimed.reasons["m"] in {"cooldown", "empty"}


def test_without_retry_after_the_pause_doubles_from_two_seconds_to_five_minutes(queue: Queue) -> None:
    ready(queue)
    refuse(queue, queue.claim(1).only)
    pauses = [closed_for_s(queue)]
    for _ in range(11):
        refuse(queue, reopen(queue))
        pauses.append(closed_for_s(queue))

    due = [min(300, 2 * 2**n) for n in range(12)]
    assert all(0.75 * mean <= pause <= 1.25 * mean for pause, mean in zip(pauses, due, strict=True)), pauses
    assert len({round(pause / mean, 3) for pause, mean in zip(pauses, due, strict=True)}) > 6, "with jitter"
    assert state(queue)["cooldowns"] == 12


@pytest.mark.parametrize(("first", "second", "in_force"), [(60, 0.7, 60), (0.7, 60, 60), (60, None, 60)])
def test_of_two_deadlines_the_later_one_wins(
    queue: Queue, first: float | None, second: float | None, in_force: float
) -> None:
    ready(queue)
    one, other = queue.claim(2).grants

    refuse(queue, one, pause_s=first)
    refuse(queue, other, pause_s=second)

    assert closed_for_s(queue) == pytest.approx(in_force, abs=1e-3)


@pytest.mark.parametrize("together", [True, False])
@pytest.mark.parametrize("pause_s", [None, 10])
def test_calls_in_flight_neither_double_the_pause_nor_cut_again(
    queue: Queue, pause_s: float | None, together: bool
) -> None:
    ready(queue, rpm=60000)
    first, *others = queue.claim(50).grants
    refuse(queue, first, pause_s=pause_s)
    before = state(queue)

    if together:
        queue.settle(*[refused(grant, "quota", pause_s) for grant in others])
    else:
        refuse(queue, *others, pause_s=pause_s)

    after = state(queue)
    same = ["cooldowns", "rpm_ceiling", "rpm_cut_at", "cooldown_started_at", "cooldown_until"]
    assert {name: after[name] for name in same} == {name: before[name] for name in same}
    assert after["cooldowns"] == 1


def test_a_call_of_before_the_closing_that_is_refused_after_the_reopening_says_nothing_new(queue: Queue) -> None:
    ready(queue)
    first, slow = queue.claim(2).grants
    refuse(queue, first)
    queue.complete(reopen(queue))
    before = state(queue)
    queue.advance(20)

    refuse(queue, slow)

    assert state(queue) == before


def test_no_storm_of_retry_after_0(queue: Queue) -> None:
    """A backend that refuses everything and says 'at once' is asked a handful of times in ten minutes."""
    ready(queue, 50, rpm=6000)
    flow = Flow(queue, lambda _: 0.01, settle=lambda grant: refused(grant, pause_s=0), maintenance=["promote"])

    flow.run(600)

    assert len(flow.grants) <= 100 + 20, "what was in flight, and probes that come more and more seldom"
    probes = [at_s for at_s, grant in flow.grants if queue.attempt(grant)["is_probe"]]
    assert 5 <= len(probes) <= 20
    assert probes[-1] - probes[-2] >= 60


def test_a_negative_or_absurd_pause_is_believed_within_bounds(queue: Queue) -> None:
    ready(queue)
    first, second = queue.claim(2).grants

    refuse(queue, first, pause_s=-5)
    assert 0 < closed_for_s(queue) < 1
    refuse(queue, second, pause_s=1e18)
    assert closed_for_s(queue) == pytest.approx(31536000)


def test_a_refused_task_loses_no_attempt_and_goes_behind_the_reopening(queue: Queue) -> None:
    ready(queue, 3)
    grant = queue.claim(1).only

    refuse(queue, grant, pause_s=30)

    task = queue.task(grant.id)
    assert (task["status"], task["attempts"], task["error"]) == ("delayed", 0, "rate_limited: no more")
    assert state(queue)["cooldown_until"] <= task["run_at"] <= state(queue)["cooldown_until"] + timedelta(seconds=0.5)
    assert queue.attempt(grant)["outcome"] == "refused"
    queue.advance(30)
    assert queue.claim(1).only.id != grant.id, "another one probes"


def test_after_twenty_refusals_they_count(queue: Queue) -> None:
    ready(queue, 1)
    (key,) = queue.values("select id from tasks")
    attempts = []
    for _ in range(25):
        refuse(queue, queue.claim(1).only, pause_s=1)
        attempts.append(queue.task(key)["attempts"])
        queue.advance(600)
        queue.promote()

    assert attempts == [0] * 20 + [1, 2, 3, 4, 5]
    assert queue.task(key)["status"] == "failed"


def test_when_the_pause_is_over_one_call_probes_and_all_others_wait(queue: Queue) -> None:
    ready(queue)
    refuse(queue, queue.claim(1).only, pause_s=10)
    queue.advance(10)

    claimed = queue.claim(10, hot_slots=5)
    assert queue.attempt(claimed.only)["is_probe"]
    assert (claimed.reasons, claimed.retry_in_s) == ({"m": "cooldown"}, {"m": None})
    again = queue.claim(10, worker=queue.register())
    assert (again.grants, again.reasons) == ([], {"m": "cooldown"})
    assert again.retry_in_s["m"] == pytest.approx(5)


@pytest.mark.parametrize("end", ["complete", "retry", "bury"])
def test_a_probe_that_is_not_refused_opens_the_model(queue: Queue, end: str) -> None:
    ready(queue)
    refuse(queue, queue.claim(1).only)
    probe = reopen(queue)
    queue.advance(3)

    getattr(queue, end)(probe)

    found = state(queue)
    assert (found["cooldown_started_at"], found["cooldown_until"], found["cooldowns"]) == (None, None, 0)
    assert found["cooldown_ended_at"] == queue.now
    assert len(queue.claim(10).grants) == 10


def test_a_refused_probe_closes_the_model_again_for_twice_as_long(queue: Queue) -> None:
    ready(queue)
    refuse(queue, queue.claim(1).only)
    refuse(queue, reopen(queue))

    assert 3 <= closed_for_s(queue) <= 5
    assert state(queue)["cooldowns"] == 2
    assert queue.claim(10).reasons == {"m": "cooldown"}


def test_a_success_starts_the_doubling_anew(queue: Queue) -> None:
    ready(queue)
    refuse(queue, queue.claim(1).only)
    refuse(queue, reopen(queue))
    queue.complete(reopen(queue))
    refuse(queue, queue.claim(1).only)

    assert closed_for_s(queue) <= 2.5


def test_a_probe_that_is_not_refused_for_five_seconds_opens_the_model(queue: Queue) -> None:
    ready(queue)
    refuse(queue, queue.claim(1).only, pause_s=10)
    first = reopen(queue)

    queue.advance(4.999)
    assert queue.claim(10).grants == []
    queue.advance(0.001)
    assert len(queue.claim(10).grants) == 10
    assert state(queue)["cooldown_until"] is None
    assert queue.complete(first) == "completed"


def test_a_probe_that_was_given_back_is_none(queue: Queue) -> None:
    ready(queue)
    refuse(queue, queue.claim(1).only, pause_s=10)
    probe = reopen(queue)
    queue.release(probe)

    assert state(queue)["cooldown_until"] is not None, "nothing was learned"
    again = queue.claim(10).only
    assert queue.attempt(again)["is_probe"]


def test_a_probe_whose_worker_died_is_none(queue: Queue) -> None:
    ready(queue)
    refuse(queue, queue.claim(1).only, pause_s=10)
    probe = reopen(queue)
    queue.lose(probe)

    again = queue.claim(10).only
    assert queue.attempt(again)["is_probe"]
    queue.complete(again)
    assert state(queue)["cooldown_until"] is None


def test_a_probe_whose_task_was_cancelled_is_none(queue: Queue) -> None:
    ready(queue)
    refuse(queue, queue.claim(1).only, pause_s=10)
    probe = reopen(queue)
    queue.cancel(probe.id)
    queue.advance(5)

    assert len(queue.claim(10).grants) >= 1


def test_an_old_probe_that_ends_well_does_not_cut_a_later_deadline_short(queue: Queue) -> None:
    ready(queue)
    refuse(queue, queue.claim(1).only, pause_s=10)
    slow = reopen(queue)
    queue.advance(5)
    refuse(queue, queue.claim(1).only, pause_s=600)
    queue.advance(20)

    queue.complete(slow)

    assert closed_for_s(queue) == pytest.approx(580, abs=1)


def test_a_probe_has_its_place_in_the_limits_too(queue: Queue) -> None:
    ready(queue, rpm=2)
    first, _ = queue.claim(10).grants
    refuse(queue, first, pause_s=10)
    queue.advance(10)

    assert queue.claim(10).grants == []


def test_a_closed_model_without_tasks_is_open_to_the_first_that_comes(queue: Queue) -> None:
    ready(queue, 1)
    grant = queue.claim(1).only
    refuse(queue, grant, pause_s=10)
    queue.cancel(grant.id)
    queue.advance(3600)
    (key,) = queue.add()

    assert queue.claim(10).ids == [key]


def test_one_poisoned_task_does_not_close_the_model_for_others_for_ever(queue: Queue) -> None:
    """Always a 503, at the head of a backlog: the others lose less than a tenth of their calls."""
    ready(queue, 1200, rpm=120)
    (poison,) = queue.add(priority=50)
    flow = Flow(
        queue,
        lambda _: 1.0,
        settle=lambda grant: refused(grant, "capacity") if grant.id == poison else complete(grant),
        maintenance=["promote"],
    )

    flow.run(540)

    done = sum(grant.id != poison for _, grant in flow.grants)
    tries = [at_s for at_s, grant in flow.grants if grant.id == poison]
    print(f"{done} others in 9 minutes at 120 a minute, the poisoned one tried {len(tries)} times")
    assert done >= 0.9 * 120 * 9
    assert queue.task(poison)["status"] == "failed" or len(tries) >= 5


@pytest.mark.parametrize(
    "pause_s",
    [
        None,
        30,
    ],
)
def test_a_trickle_is_not_held_up_by_a_poisoned_task_either(queue: Queue, pause_s: float | None) -> None:
    """One other task every ten seconds: the poisoned one is often alone, and is the probe."""
    ready(queue, 0, rpm=600)
    (poison,) = queue.add()
    flow = Flow(
        queue,
        lambda _: 1.0,
        settle=lambda grant: refused(grant, "capacity", pause_s) if grant.id == poison else complete(grant),
        maintenance=["promote"],
    )
    came: dict[Any, float] = {}

    def come() -> None:
        (key,) = queue.add(created_at=queue.now)
        came[key] = flow.now_s
        flow.wake()

    for n in range(90):
        flow.at(10 * n + 5, come)
    flow.run(960)

    waits = sorted(at_s - came[grant.id] for at_s, grant in flow.grants if grant.id in came)
    assert len(waits) == 90
    print(f"poisoned, {pause_s}: {sum(wait > 1 for wait in waits)} of 90 others waited, the longest {waits[-1]:.0f} s")
    assert waits[-1] <= 31
    assert sum(wait > 1 for wait in waits) <= 12, "three cooldowns, and no more"
