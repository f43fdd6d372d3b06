"""sweep and heartbeat: tasks of a dead worker run again, those of a living worker are never touched (design I9)."""

from __future__ import annotations

from datetime import timedelta
from uuid import UUID, uuid4

import psycopg
import pytest

from tests.support.sql import Queue


@pytest.fixture
def sweeper(queue: Queue) -> UUID:
    """Returns a worker with a lease of heartbeats; the queue's own worker sends heartbeats too."""
    worker = queue.register()
    for _ in range(3):
        queue.advance(10)
        queue.beat(worker)
        queue.beat()
    queue.model("m", 60000)
    return worker


def pass_time(queue: Queue, seconds: int, *alive: UUID) -> None:
    for _ in range(seconds // 5):
        queue.advance(5)
        for worker in alive:
            queue.beat(worker)


def test_a_dead_workers_tasks_are_ready_again(queue: Queue, sweeper: UUID) -> None:
    queue.add(2)
    done, lost = queue.claim(2).grants
    queue.complete(done)
    pass_time(queue, 20, sweeper)

    assert queue.sweep(sweeper) == 1

    task, attempt = queue.task(lost.id), queue.attempt(lost)
    assert (task["status"], task["attempts"], task["run_at"]) == ("unsolved", 1, queue.now)
    assert (attempt["outcome"], attempt["ended_at"]) == ("lost", queue.now)
    assert queue.task(done.id)["status"] == "solved"
    assert queue.claim(1, worker=sweeper).only.attempt_no == 2


def test_a_live_workers_tasks_are_never_touched(queue: Queue, sweeper: UUID) -> None:
    queue.add(3)
    queue.claim(3)

    for _ in range(100):
        pass_time(queue, 10, sweeper, queue.worker)
        assert queue.sweep(sweeper) == 0

    assert queue.values("select distinct status from tasks") == ["running"]


def test_one_second_before_the_end_of_the_lease_a_worker_lives(queue: Queue, sweeper: UUID) -> None:
    queue.add()
    queue.claim(1)
    pass_time(queue, 15, sweeper)
    queue.advance(4.9)
    assert queue.sweep(sweeper) == 0

    queue.beat(sweeper)
    queue.advance(0.1)
    assert queue.sweep(sweeper) == 1


def test_out_of_attempts_is_a_dead_letter(queue: Queue, sweeper: UUID) -> None:
    (last,), (more,), (default,) = queue.add(max_attempts=1), queue.add(max_attempts=2), queue.add(attempts=4)
    queue.claim(3)
    pass_time(queue, 20, sweeper)

    queue.sweep(sweeper)

    assert [queue.task(key)["status"] for key in (last, more, default)] == ["failed", "unsolved", "failed"]
    assert queue.task(last)["finished_at"] == queue.now
    assert "gone" in queue.task(last)["error"]


def test_a_task_that_kills_every_worker_ends_as_a_dead_letter(queue: Queue, sweeper: UUID) -> None:
    (key,) = queue.add()

    for _ in range(5):
        victim = queue.register()
        queue.claim(1, worker=victim)
        pass_time(queue, 20, sweeper)
        queue.sweep(sweeper)

    assert (queue.task(key)["status"], queue.task(key)["attempts"]) == ("failed", 5)


def test_who_has_not_beaten_for_a_lease_sweeps_nobody(queue: Queue, sweeper: UUID) -> None:
    queue.add()
    queue.claim(1)
    pass_time(queue, 40, sweeper)
    young = queue.register()

    pass_time(queue, 15, young)
    assert queue.sweep(young) == 0
    pass_time(queue, 5, young)
    assert queue.sweep(young) == 1


def test_after_a_gap_of_a_lease_the_count_starts_anew(queue: Queue, sweeper: UUID) -> None:
    queue.add()
    queue.claim(1)
    queue.advance(60)  # an outage: nobody could beat

    queue.beat(sweeper)
    assert queue.sweep(sweeper) == 0
    pass_time(queue, 15, sweeper)
    assert queue.sweep(sweeper) == 0
    pass_time(queue, 5, sweeper)
    assert queue.sweep(sweeper) == 1


def test_a_worker_that_wakes_up_from_a_gap_sweeps_nobody_before_it_has_beaten(queue: Queue, sweeper: UUID) -> None:
    queue.add()
    grant = queue.claim(1).only
    queue.advance(60)

    assert queue.sweep(sweeper) == 0

    assert queue.task(grant.id)["status"] == "running"
    assert queue.values("select count(*) from llmqueue.worker") == [2]


def test_after_the_clock_has_jumped_ahead_nobody_is_swept_by_who_has_not_beaten_since(
    queue: Queue, sweeper: UUID
) -> None:
    queue.add()
    grant = queue.claim(1).only
    queue.advance(4)
    queue.beat(sweeper)
    queue.advance(16.5)  # a jump: the other one's last beat looks like more than a lease ago, and it lives

    assert queue.sweep(sweeper) == 0

    assert queue.task(grant.id)["status"] == "running"


def test_within_a_lease_of_the_servers_start_nobody_is_swept(queue: Queue, sweeper: UUID) -> None:
    queue.add()
    queue.claim(1)
    queue.rows("""update llmqueue.worker set heartbeat_at = pg_postmaster_start_time() - interval '1 day',
                  beating_since = pg_postmaster_start_time() - interval '2 days'""")
    queue.rows(
        "update llmqueue.worker set heartbeat_at = pg_postmaster_start_time() + interval '19 s' where worker = %s",
        sweeper,
    )
    started_at = queue.value("select pg_postmaster_start_time()")

    queue.now = started_at + timedelta(seconds=19.9)
    assert queue.sweep(sweeper) == 0
    queue.now = started_at + timedelta(seconds=20)
    assert queue.sweep(sweeper) == 1


def test_the_tasks_of_a_worker_that_has_left_are_swept_at_once(queue: Queue, sweeper: UUID) -> None:
    queue.add()
    grant = queue.claim(1).only

    queue.rows("select llmqueue.leave(%s)", queue.worker)

    assert queue.sweep(sweeper) == 1
    assert queue.task(grant.id)["status"] == "unsolved"


def test_dead_workers_leave_the_list_and_the_idle(queue: Queue, sweeper: UUID) -> None:
    queue.rows("insert into llmqueue.idle_worker values (%s, now()), (%s, now())", queue.worker, sweeper)
    pass_time(queue, 20, sweeper)

    queue.sweep(sweeper)

    assert queue.values("select worker from llmqueue.worker") == [sweeper]
    assert queue.values("select worker from llmqueue.idle_worker") == [sweeper]
    with pytest.raises(psycopg.DatabaseError) as raised:
        queue.beat()
    assert raised.value.sqlstate == "LQ002"


def test_a_lease_of_its_own_counts_for_each_worker(queue: Queue, sweeper: UUID) -> None:
    patient = queue.register(lease_s=300)
    queue.add()
    queue.claim(1, worker=patient)
    pass_time(queue, 200, sweeper)
    assert queue.sweep(sweeper) == 0

    pass_time(queue, 100, sweeper)
    assert queue.sweep(sweeper) == 1


def test_a_sweep_is_bounded(queue: Queue, sweeper: UUID) -> None:
    queue.add(7)
    queue.claim(7)
    pass_time(queue, 20, sweeper)

    taken = [queue.value("select llmqueue_internal.sweep(%s, 3)", sweeper) for _ in range(4)]

    assert taken == [3, 3, 1, 0]


def test_a_task_cancelled_meanwhile_stays_cancelled(queue: Queue, sweeper: UUID) -> None:
    queue.add()
    grant = queue.claim(1).only
    queue.cancel(grant.id)
    pass_time(queue, 20, sweeper)

    queue.sweep(sweeper)

    assert queue.task(grant.id)["status"] == "cancelled"
    assert queue.attempt(grant)["outcome"] == "lost"


def test_after_a_step_back_of_the_clock_the_dead_are_still_found(queue: Queue, sweeper: UUID) -> None:
    queue.add()
    grant = queue.claim(1).only
    queue.advance(-3600)

    pass_time(queue, 60, sweeper)
    queue.sweep(sweeper)

    assert queue.task(grant.id)["status"] == "unsolved"


def test_after_a_step_back_of_the_clock_the_living_are_left_alone(queue: Queue, sweeper: UUID) -> None:
    queue.add()
    queue.claim(1)
    queue.advance(-3600)

    for _ in range(20):
        pass_time(queue, 10, sweeper, queue.worker)
        assert queue.sweep(sweeper) == 0


def test_a_heartbeat_notifies_the_workers_own_channel(shared: str) -> None:
    worker = uuid4()
    with psycopg.connect(shared, autocommit=True) as conn:
        conn.execute("select llmqueue.register(%s, 'w', '0', null, 20, 0.5)", (worker,))
        conn.execute(f"listen llmqueue_{worker.hex}")
        try:
            conn.execute("select llmqueue.heartbeat(%s, 7)", (worker,))

            (wake,) = conn.notifies(timeout=10, stop_after=1)
            assert wake.channel == f"llmqueue_{worker.hex}"
            assert conn.execute("select running from llmqueue.worker where worker = %s", (worker,)).fetchone() == (7,)
        finally:
            conn.execute("select llmqueue.leave(%s)", (worker,))
