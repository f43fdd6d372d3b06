"""Compares the fence with a small model: whatever workers, sweeps and operators do, each task has one end."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

import psycopg
from hypothesis import event, given
from hypothesis import strategies as st

from tests.support.sql import Grant, Queue, complete, release, retry

MAX_ATTEMPTS = 3
ENDED = {"solved", "failed", "cancelled"}


@dataclass
class Task:
    status: str = "unsolved"
    life: int = 0
    # lives that were begun by a claim: one that was cancelled before any is no start, and the key stays the same
    started_life: int = 0
    starts: int = 0
    attempts: int = 0
    fence: int | None = None
    answer: str | None = None
    is_deleted: bool = False


@dataclass
class Attempt:
    grant: Grant
    life: int
    outcome: str | None = None
    kept: str | None = None


@dataclass
class World:
    queue: Queue
    workers: list[UUID]
    tasks: dict[int, Task] = field(default_factory=dict)
    attempts: list[Attempt] = field(default_factory=list)

    # --- what happens, in the database and in the model ---------------------------------------------------------

    def claim(self, worker: int, slots: int) -> None:
        ready = [key for key, task in self.tasks.items() if task.status == "unsolved" and not task.is_deleted]
        claimed = self.queue.claim(slots, worker=self.workers[worker])
        assert len(claimed.grants) == min(slots, len(ready))
        assert set(claimed.ids) <= set(ready)
        newest = max((attempt.grant.fence for attempt in self.attempts), default=0)
        for grant in claimed.grants:
            task = self.tasks[grant.id]
            task.status, task.fence, task.attempts = "running", grant.fence, task.attempts + 1
            task.starts += task.life > task.started_life
            task.started_life = task.life
            assert (grant.attempt_no, grant.restarts) == (task.attempts, task.starts)
            assert grant.fence > newest
            self.attempts.append(Attempt(grant, task.life))

    def settle(self, nth: int, verb: str) -> None:
        if not self.attempts:
            return
        attempt = self.attempts[nth % len(self.attempts)]
        grant = attempt.grant
        answer = f"{verb} of {grant.fence}"
        item = {
            "complete": complete(grant, answer),
            "retry": retry(grant, delay_s=0),
            "refuse": retry(grant, delay_s=0, counts=False),
            "release": release(grant),
            "bury": {**complete(grant, answer), "verb": "bury", "error_class": "x", "error": "y"},
        }[verb]
        expected = self.expect(attempt, verb, answer)

        assert self.queue.settle(item, worker=grant.worker) == [expected]

    def expect(self, attempt: Attempt, verb: str, answer: str) -> str:
        task = self.tasks[attempt.grant.id]
        holds = not task.is_deleted and task.status == "running" and task.fence == attempt.grant.fence
        if attempt.outcome is not None and not (verb == "complete" and attempt.outcome == "lost"):
            return attempt.outcome
        match verb:
            case "complete":
                waits = not task.is_deleted and task.status in {"unsolved", "delayed"} and task.life == attempt.life
                if holds or waits:
                    task.status, task.answer, attempt.outcome = "solved", answer, "completed"
                else:
                    attempt.outcome, attempt.kept = "late", answer
            case "bury":
                attempt.outcome = "buried" if holds else "late"
                attempt.kept = answer
                if holds:
                    task.status = "failed"
            case "release":
                attempt.outcome = "released"
                if holds:
                    task.status, task.attempts = "unsolved", task.attempts - 1
            case "refuse" | "retry" if not holds:
                attempt.outcome = "late"
            case "refuse":
                attempt.outcome = "refused"
                task.status, task.attempts = "delayed", task.attempts - 1
            case _:
                is_last = task.attempts >= MAX_ATTEMPTS
                attempt.outcome = "buried" if is_last else "retried"
                task.status = "failed" if is_last else "delayed"
        assert attempt.outcome is not None
        return attempt.outcome

    def lose(self, worker: int) -> None:
        """One worker is swept by another; both have the same uuid and go on afterwards, as after an outage."""
        dead, sweeper = self.workers[worker], self.workers[(worker + 1) % len(self.workers)]
        self.queue.advance(100)
        for alive in self.workers:
            self.queue.beat(alive)
        self.queue.rows("update llmqueue.worker set heartbeat_at = '2001-01-01 00:00+00' where worker = %s", dead)
        self.queue.rows("update llmqueue.worker set beating_since = '2001-01-01 00:00+00' where worker <> %s", dead)
        lost = [attempt for attempt in self.attempts if attempt.outcome is None and attempt.grant.worker == dead]
        assert self.queue.sweep(sweeper) == len(lost)
        self.queue.register(worker=dead)
        for attempt in lost:
            attempt.outcome = "lost"
            task = self.tasks[attempt.grant.id]
            if not task.is_deleted and task.status == "running" and task.fence == attempt.grant.fence:
                task.status = "failed" if task.attempts >= MAX_ATTEMPTS else "unsolved"

    def operate(self, nth: int, verb: str) -> None:
        key = sorted(self.tasks)[nth % len(self.tasks)]
        task = self.tasks[key]
        if task.is_deleted:
            return
        is_ended = task.status in ENDED
        match verb:
            case "cancel":
                assert self.queue.cancel(key) == ([] if is_ended else [key])
                task.status = task.status if is_ended else "cancelled"
            case "restart":
                can = is_ended or task.status == "delayed"
                assert self.queue.restart(key) == ([key] if can else [])
                if can:
                    self.start_anew(task)
            case "reset" if is_ended:
                self.queue.rows("update tasks set status = 'unsolved' where id = %s", key)
                self.start_anew(task)
            case "take away" if task.status == "running":
                self.queue.rows("update tasks set status = 'unsolved' where id = %s", key)
                task.status = "unsolved"
            case "delete":
                self.queue.rows("delete from tasks where id = %s", key)
                task.is_deleted = True

    def start_anew(self, task: Task) -> None:
        task.status, task.life, task.attempts = "unsolved", task.life + 1, 0

    def promote(self) -> None:
        delayed = [task for task in self.tasks.values() if task.status == "delayed" and not task.is_deleted]
        assert self.queue.promote() == len(delayed)
        for task in delayed:
            task.status = "unsolved"

    # --- what must hold -----------------------------------------------------------------------------------------

    def check(self) -> None:
        rows = {
            row["id"]: row
            for row in self.queue.rows("select id, status, attempts, fence, answer, restarts, finished_at from tasks")
        }
        assert set(rows) == {key for key, task in self.tasks.items() if not task.is_deleted}
        for key, row in rows.items():
            task = self.tasks[key]
            assert (row["status"], row["answer"], row["fence"]) == (task.status, task.answer, task.fence), key
            assert (row["finished_at"] is not None) >= (task.status in ENDED)
        stored = {row["fence"]: row for row in self.queue.rows("select fence, outcome, answer from llmqueue.attempt")}
        assert len(stored) == len(self.attempts)
        for attempt in self.attempts:
            row = stored[attempt.grant.fence]
            assert (row["outcome"], row["answer"]) == (attempt.outcome, attempt.kept), attempt
        assert self.queue.quarantined() == {}


INDEX = st.integers(0, 60)
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("claim"), st.integers(0, 2), st.integers(1, 4)),
        st.tuples(
            st.just("settle"), INDEX, st.sampled_from(["complete", "complete", "retry", "refuse", "release", "bury"])
        ),
        st.tuples(st.just("settle"), INDEX, st.sampled_from(["complete", "release"])),
        st.tuples(st.just("lose"), st.integers(0, 2)),
        st.tuples(
            st.just("operate"), INDEX, st.sampled_from(["cancel", "restart", "restart", "reset", "take away", "delete"])
        ),
        st.tuples(st.just("promote")),
    ),
    min_size=8,
    max_size=50,
)


@given(steps=STEPS)
def test_each_task_has_one_end_and_the_right_one(
    backlog: psycopg.Connection[Any], steps: list[tuple[Any, ...]]
) -> None:
    try:
        queue = Queue(backlog)
        queue.rows("delete from tasks")
        queue.model("m", 6_000_000)
        world = World(queue, [queue.worker, queue.register(), queue.register()])
        world.tasks = {key: Task() for key in queue.add(4, max_attempts=MAX_ATTEMPTS)}
        for verb, *args in steps:
            getattr(world, verb)(*args)
        world.check()
        event("attempts", len(world.attempts))
    finally:
        backlog.rollback()
