"""Claim, complete, retry, sweep, cancel and release of one task in every order, with open transactions.

The expected results follow from the model of one task (tests/support/protocol.py) and three rules: uncommitted changes
are invisible, a row or model that another session has locked is skipped, and a person's cancel waits for the row.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import dataclass, field
from datetime import timedelta
from itertools import product
from typing import Any

import psycopg
import pytest

from tests.support.protocol import ENDED, Action, State, act
from tests.support.sessions import Sessions, sessions
from tests.support.sql import T0, Grant, Queue, complete, release, retry

VERBS = ("claim", "complete", "retry", "release", "sweep", "cancel")
MAX_ATTEMPTS = 2
PATIENCE_S = 20.0

# Where the task is when they begin. Its first attempt is of worker 1, the second of worker 2; both are thought to be
# dead, worker 3 claims, worker 4 sweeps. The ends are ends of the first attempt.
BEGINNINGS: dict[str, tuple[Action, ...]] = {
    "running": (Action("claim", 1),),
    "given back": (Action("claim", 1), Action("sweep", 1)),
    "running anew": (Action("claim", 1), Action("sweep", 1), Action("claim", 2)),
    "delayed": (Action("claim", 1), Action("retry", 1)),
}
CLAIMER = 3


def action_of(verb: str) -> Action:
    return Action(verb, {"claim": CLAIMER, "sweep": 0, "cancel": 0}.get(verb, 1))


# --- what must happen -----------------------------------------------------------------------------------------------


@dataclass
class Expected:
    """The world by the rules: what is committed, who holds the task's row or the model, who waits for the row."""

    state: State
    row_held_by: int | None = None
    model_held_by: int | None = None
    results: dict[int, State] = field(default_factory=dict)  # of actors that have called and not committed
    waiting: list[int] = field(default_factory=list)

    def call(self, actor: int, verb: str) -> bool:
        """Return whether the actor comes through; else it waits."""
        match verb:
            case "claim":
                is_ready = self.state.status == "unsolved"
                if is_ready and self.model_held_by is None:
                    self.model_held_by = actor
                    if self.row_held_by is None:
                        self._apply(actor, action_of(verb))
            case "sweep":
                if self.row_held_by is None and any(attempt.outcome is None for attempt in self.state.log):
                    self._apply(actor, *(Action("sweep", worker) for worker in (1, 2)))
            case "cancel":
                if self.state.status in ENDED:
                    return True
                if self.row_held_by is not None:
                    self.waiting.append(actor)
                    return False
                self._apply(actor, action_of(verb))
            case _:
                if self.row_held_by is None:
                    self._apply(actor, action_of(verb))
        return True

    def _apply(self, actor: int, *actions: Action) -> None:
        state = self.state
        for action in actions:
            state = act(state, action, MAX_ATTEMPTS)
        self.row_held_by = actor
        self.results[actor] = state

    def commit(self, actor: int, came_through: Callable[[], int]) -> None:
        """One of those that wait comes through because of it, Postgres says which. It has the row, ended or not."""
        self.state = self.results.pop(actor, self.state)
        if self.model_held_by == actor:
            self.model_held_by = None
        if self.row_held_by != actor:
            return
        self.row_held_by = None
        if self.waiting:
            first = came_through()
            self.waiting.remove(first)
            self._apply(first, Action("cancel"))


# --- what happens ---------------------------------------------------------------------------------------------------


class Actual:
    """The same on Postgres: an actor is a connection with a transaction of its own."""

    def __init__(self, two: Sessions) -> None:
        self.two = two
        self.watcher = two.queue()
        self.watcher.model("m", 6_000_000)
        self.actors = [two.queue() for _ in range(3)]
        for queue in (self.watcher, *self.actors):
            queue.now = T0  # long after the start of the server, else nothing is swept
        self.workers = [self.watcher.register() for _ in range(4)]
        self.watcher.rows("delete from llmqueue.worker where worker <> all (%s)", self.workers)
        for actor in self.actors:
            # any wait but that of a cancel would raise here
            actor.rows("set lock_timeout = '10s'")
            actor.conn.autocommit = False
        self.grants: list[Grant] = []
        self.waiting: dict[int, Future[Any]] = {}
        self.key: Any = None

    def begin(self, beginning: str) -> State:
        self.watcher.rows("delete from tasks")
        for table in ("attempt", "ledger_grant", "ledger_cell"):
            self.watcher.rows(f"delete from llmqueue.{table}")
        (self.key,) = self.watcher.add(max_attempts=MAX_ATTEMPTS)
        self.grants = []
        state = State()
        self._bury_the_workers(set())
        for action in BEGINNINGS[beginning]:
            self._do(self.watcher, action.verb, action.who)
            state = act(state, action, MAX_ATTEMPTS)
        self._bury_the_workers({0, 1})
        return state

    def _bury_the_workers(self, dead: set[int]) -> None:
        beats = [T0 - timedelta(hours=number in dead) for number in range(len(self.workers))]
        self.watcher.rows(
            "insert into llmqueue.worker (worker, name, version, lease_s, started_at, heartbeat_at, beating_since) "
            "select w.id, 'w', '0', 20, '2001-01-01', w.beat, '2001-01-01' from unnest(%s::uuid[], %s) w(id, beat) "
            "on conflict (worker) do update set heartbeat_at = excluded.heartbeat_at, beating_since = '2001-01-01'",
            self.workers,
            beats,
        )

    def call(self, actor: int, verb: str, is_to_wait: bool) -> None:
        queue = self.actors[actor]
        if not is_to_wait:
            self._do(queue, verb, action_of(verb).who)
            return
        self.waiting[actor] = self.two.start(lambda: self._do(queue, verb, 0))
        self.two.wait_until_waiting(queue.conn)
        self.assert_holds_nothing(queue)

    def assert_holds_nothing(self, queue: Queue) -> None:
        """Checks that a session that waits for a task's row holds no internal lock, by the lock order."""
        held = self.watcher.values(
            "select relation::regclass::text from pg_locks where pid = %s and granted and locktype = 'relation' "
            "and mode <> 'AccessShareLock' union all select 'a model' from pg_locks where pid = %s and "
            "granted and locktype = 'advisory'",
            queue.conn.info.backend_pid,
            queue.conn.info.backend_pid,
        )
        assert set(held) <= {"tasks", "llmqueue.task", "tasks_pkey"} | {
            name for name in held if name.startswith("llmqueue_")
        }

    def _do(self, queue: Queue, verb: str, who: int) -> None:
        match verb:
            case "claim":
                self.grants += queue.claim(1, worker=self.workers[who - 1]).grants
            case "sweep" if who:  # of a beginning: the others live
                self._bury_the_workers({who - 1})
                queue.sweep(self.workers[3])
                self._bury_the_workers(set())
            case "sweep":
                queue.sweep(self.workers[3])
            case "cancel":
                queue.cancel(self.key)
            case _:
                grant = self.grants[who - 1]
                item = {
                    "complete": complete(grant, str(who)),
                    "retry": retry(grant, delay_s=3600),
                    "release": release(grant),
                }
                queue.settle(item[verb], worker=grant.worker)

    def commit(self, actor: int) -> None:
        self.actors[actor].conn.commit()

    def came_through(self) -> int:
        """Return who no longer waits. Not always the first: whoever finds the row's new version first has it."""
        done, _ = wait(self.waiting.values(), PATIENCE_S, return_when=FIRST_COMPLETED)
        actor = next(actor for actor, future in self.waiting.items() if future in done)
        self.waiting.pop(actor).result()
        return actor

    def rollback(self) -> None:
        for future in self.waiting.values():
            future.cancel()
        for actor in self.actors:
            actor.conn.rollback()

    def assert_is(self, expected: State) -> None:
        task = self.watcher.task(self.key)
        fences = {grant.fence: number for number, grant in enumerate(self.grants, 1)}
        found = (task["status"], task["attempts"], task["answer"], fences.get(task["fence"], 0))
        answer = None if expected.answer is None else str(expected.answer)
        assert found == (expected.status, expected.attempts, answer, expected.fence)
        assert (task["finished_at"] is not None) == (expected.status in ENDED)
        log = self.watcher.rows("select * from llmqueue.attempt order by fence")
        assert [(row["outcome"], row["attempt_no"], row["answer"] is not None) for row in log] == [
            (attempt.outcome, attempt.number, attempt.is_answer_kept) for attempt in expected.log
        ]
        charged = self.watcher.value(
            "select coalesce(sum(calls), 0) from (select calls from llmqueue.ledger_grant "
            "union all select calls from llmqueue.ledger_cell) ledger"
        )
        assert charged == expected.charged


def play(actual: Actual, beginning: str, verbs: tuple[str, ...], commits: list[int]) -> int:
    """Let all call in the order given, then commit as asked; who waits commits when it has come through.

    Return how many had to wait.
    """
    expected = Expected(actual.begin(beginning))
    try:
        for actor, verb in enumerate(verbs):
            comes_through = expected.call(actor, verb)
            actual.call(actor, verb, is_to_wait=not comes_through)
        waited, left = len(expected.waiting), list(commits)
        while left:
            actor = next(actor for actor in left if actor not in expected.waiting)
            left.remove(actor)
            actual.commit(actor)
            expected.commit(actor, actual.came_through)
            actual.assert_is(expected.state)
    finally:
        actual.rollback()
    return waited


@pytest.fixture
def actual(installed: str) -> Iterator[Actual]:
    with sessions(installed) as two:
        yield Actual(two)


def play_all(actual: Actual, plays: list[tuple[str, tuple[str, ...], list[int]]]) -> None:
    waits = 0
    for beginning, verbs, commits in plays:
        try:
            waits += play(actual, beginning, verbs, commits)
        except (AssertionError, psycopg.Error) as error:
            error.add_note(f"{' then '.join(verbs)} of a task that was {beginning}, commits in the order {commits}")
            raise
    print(f"\n{len(plays)} orders, {waits} waits seen")
    assert waits > 0


def test_every_order_of_two(actual: Actual) -> None:
    plays = list(product(BEGINNINGS, product(VERBS, repeat=2), ([0, 1], [1, 0])))

    play_all(actual, plays)


TRIPLES = list(product(BEGINNINGS, product(VERBS, repeat=3), ([0, 1, 2], [2, 1, 0], [1, 2, 0])))


def test_a_sample_of_the_orders_of_three(actual: Actual) -> None:
    play_all(actual, random.Random(4).sample(TRIPLES, 60))


@pytest.mark.slow
def test_every_order_of_three(actual: Actual) -> None:
    play_all(actual, TRIPLES)


@pytest.mark.parametrize("verb", ["cancel", "restart"])
def test_two_people_who_name_the_same_tasks_in_another_order_meet_without_a_deadlock(actual: Actual, verb: str) -> None:
    first, second = actual.actors[:2]
    one, other = actual.watcher.add(2, status="delayed", run_at="2100-01-01 00:00+00")
    getattr(first, verb)(one)

    waiting = actual.two.start(lambda: getattr(second, verb)(other, one))
    actual.two.wait_until_waiting(second.conn)
    getattr(first, verb)(other)
    first.conn.commit()

    waiting.result(PATIENCE_S)
    second.conn.commit()
