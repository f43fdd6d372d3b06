"""The attempt protocol, exhaustively: every state of a small model keeps the guarantees, and SQL matches the model.

The second half checks the model: it takes each step from each state on Postgres and compares the stored rows.
"""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import psycopg
import pytest

from tests.support.protocol import ENDED, Action, Bounds, State, act, reachable
from tests.support.sql import Grant, Queue, complete, release, retry

# All that can happen to a task with two workers, three claims and one restart by hand.
WIDE = Bounds(claims=3, lives=2)


def broken_promises(state: State, bounds: Bounds) -> list[str]:
    life = [(fence, attempt) for fence, attempt in enumerate(state.log, 1) if attempt.life == state.life]
    completed = [fence for fence, attempt in life if attempt.outcome == "completed"]
    counted = sum(attempt.outcome not in {"released", "refused"} for _, attempt in life)
    promises = {
        "an answer is recorded once in a life": len(completed) <= 1,
        "a recorded answer is the task's end": not completed or (state.status, [state.answer]) == ("solved", completed),
        "solved means answered in this life": state.status != "solved" or bool(completed),
        "who runs it has not ended": state.status != "running" or state.log[-1].outcome is None,
        "an open attempt holds its task, or a person's word has ended it or begun anew": all(
            attempt.outcome is not None or state.holds(fence) or state.status == "cancelled" for fence, attempt in life
        ),
        "attempts are counted": state.attempts == counted or state.status == "cancelled" or not state.is_begun,
        "no more attempts than allowed": state.attempts <= bounds.max_attempts,
    }
    return [promise for promise, is_kept in promises.items() if not is_kept]


def broken_by_step(before: State, action: Action, after: State) -> list[str]:
    promises = {
        "no end is taken back but by a person": before.status not in ENDED
        or after.status == before.status
        or action.verb == "restart",
        "no older fence overwrites a newer one": after.answer == before.answer
        or (
            before.log[after.answer - 1].life == before.life
            and not (before.status == "running" and after.answer < before.fence)
        )
        if after.answer is not None
        else True,
        "an end is recorded once": all(
            old.outcome in {None, "lost", new.outcome} for old, new in zip(before.log, after.log, strict=False)
        ),
        "nothing is refunded but what was released": after.charged - before.charged
        == (after.fence - before.fence) - (action.verb == "release" and before != after),
        "a paid answer is in its task or kept, unless its attempt had told another end before": action.verb
        != "complete"
        or before.log[action.who - 1].outcome not in {None, "lost"}
        or after.log[action.who - 1].is_answer_kept
        or after.answer == action.who,
    }
    return [promise for promise, is_kept in promises.items() if not is_kept]


def test_every_state_that_can_come_to_be_keeps_every_promise() -> None:
    graph = reachable(WIDE)

    steps = 0
    for state, nexts in graph.items():
        assert broken_promises(state, WIDE) == [], state
        for action, after in nexts.items():
            steps += 1
            assert broken_by_step(state, action, after) == [], (state, action)
    print(f"\nattempt protocol: {len(graph)} states, {steps} steps")
    assert len(graph) > 9000


def test_from_every_state_an_end_can_be_reached_without_a_person() -> None:
    people = {"cancel", "restart"}
    graph = reachable(WIDE)
    ends = {state for state in graph if state.status in ENDED or state.fence == WIDE.claims}
    ahead = set(ends)

    while True:
        more = {
            state
            for state, nexts in graph.items()
            if state not in ahead
            and any(after in ahead for action, after in nexts.items() if action.verb not in people)
        }
        if not more:
            break
        ahead |= more

    assert set(graph) == ahead


class Replay:
    """Walks the model's graph on Postgres: each changing step under a savepoint of its own, depth first."""

    def __init__(self, conn: psycopg.Connection[Any], bounds: Bounds) -> None:
        self.queue = Queue(conn)
        self.bounds = bounds
        self.queue.rows("delete from tasks")
        self.queue.model("m", 6_000_000)
        self.sweeper = self.queue.worker
        self.workers = [self.queue.register() for _ in range(bounds.workers)]
        self.queue.rows(
            "update llmqueue.worker set beating_since = '2001-01-01 00:00+00' where worker = %s", self.sweeper
        )
        (self.key,) = self.queue.add(max_attempts=bounds.max_attempts)
        self.grants: list[Grant] = []
        self.steps = 0

    def walk(self, graph: dict[State, dict[Action, State]]) -> None:
        self._walk(State(), graph, {State()})

    def _walk(self, state: State, graph: dict[State, dict[Action, State]], seen: set[State]) -> None:
        for action, after in graph[state].items():
            if after == state:
                self.do(action)
        assert self.read(state) == state, f"something has changed {state}"
        for action, after in graph[state].items():
            if after == state:
                continue
            claim_state = dict(self.queue.claim_state)
            with suppress(psycopg.Rollback), self.queue.conn.transaction(force_rollback=True):
                known = len(self.grants)
                self.do(action)
                assert self.read(after) == after, f"{action} in {state}"
                if after not in seen:
                    seen.add(after)
                    self._walk(after, graph, seen)
            del self.grants[known:]
            self.queue.claim_state = (
                claim_state  # a fence that was rolled back with its claim would look like a lost state
            )

    def do(self, action: Action) -> None:
        self.steps += 1
        match action.verb:
            case "claim":
                self.grants += self.queue.claim(1, ["m"], worker=self.workers[action.who - 1]).grants
            case "sweep":
                worker = self.workers[action.who - 1]
                gone = "update llmqueue.worker set heartbeat_at = '2001-01-01 00:00+00' where worker = %s"
                self.queue.rows(gone, worker)
                self.queue.sweep(self.sweeper)
                self.queue.register(worker=worker)  # it is not gone, only thought to be: the harder case
            case "cancel" | "restart":
                getattr(self.queue, action.verb)(self.key)
            case "promote":
                self.queue.promote()
            case verb:
                grant = self.grants[action.who - 1]
                self.queue.settle(self.item(verb, grant, action.who), worker=grant.worker)

    def item(self, verb: str, grant: Grant, fence: int) -> dict[str, object]:
        match verb:
            case "complete":
                return complete(grant, str(fence))
            case "release":
                return release(grant)
            case "bury":
                return {**complete(grant, str(fence)), "verb": "bury", "error_class": "x", "error": "y"}
            case _:
                return retry(grant, delay_s=0, counts=verb == "retry")

    def read(self, expected: State) -> State:
        """The stored rows as a state. What only the model knows (lives) is taken from what is expected."""
        fences = {grant.fence: fence for fence, grant in enumerate(self.grants, 1)}
        task = self.queue.task(self.key)
        assert fences.get(task["fence"], 0) == expected.fence
        log = self.queue.rows("select * from llmqueue.attempt order by fence")
        attempts = tuple(
            type(known)(
                1 + self.workers.index(row["worker"]),
                row["attempt_no"],
                known.life,
                row["outcome"],
                row["answer"] is not None,
            )
            for row, known in zip(log, expected.log, strict=True)
        )
        charged = self.queue.value(
            "select coalesce(sum(calls), 0) from (select calls from llmqueue.ledger_grant "
            "union all select calls from llmqueue.ledger_cell) ledger"
        )
        assert charged == expected.charged, "an unsent call is refunded once, a sent one never"
        return State(
            status=task["status"],
            attempts=task["attempts"],
            life=expected.life,
            answer=None if task["answer"] is None else int(task["answer"]),
            answer_life=expected.answer_life,
            log=attempts,
        )


def walk(conn: psycopg.Connection[Any], bounds: Bounds) -> None:
    graph = reachable(bounds)
    try:
        replay = Replay(conn, bounds)
        replay.walk(graph)
    finally:
        conn.rollback()
    print(f"\nattempt protocol on Postgres: {len(graph)} states, {replay.steps} steps")
    assert replay.steps == sum(map(len, graph.values()))


@pytest.mark.parametrize("bounds", [Bounds(lives=1), Bounds(workers=1, max_attempts=1)], ids=str)
def test_postgres_does_what_the_model_does_in_every_state(backlog: psycopg.Connection[Any], bounds: Bounds) -> None:
    walk(backlog, bounds)


@pytest.mark.slow
@pytest.mark.parametrize("bounds", [Bounds(), WIDE], ids=str)
def test_postgres_does_what_the_wide_model_does_in_every_state(
    backlog: psycopg.Connection[Any], bounds: Bounds
) -> None:
    walk(backlog, bounds)


@pytest.mark.parametrize(
    ("story", "end"),
    [
        ("claim 1, sweep 1, claim 2, complete 1, complete 2", "solved"),
        ("claim 1, sweep 1, complete 1, complete 1, claim 2", "solved"),
        ("claim 1, cancel, restart, claim 2, complete 1, release 2", "unsolved"),
    ],
)
def test_the_model_tells_these_stories(story: str, end: str) -> None:
    state = State()
    for step in story.split(", "):
        verb, _, who = step.partition(" ")
        state = act(state, Action(verb, int(who or 0)), WIDE.max_attempts)

    assert state.status == end
    assert state.answer in {None, 1, 2}
    assert (state.answer is None) == (end != "solved")
