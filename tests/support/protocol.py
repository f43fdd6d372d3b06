"""The guarantees of the SQL functions about one task, as a small pure model: states, actions, and their effects.

The environment is as hostile as possible: any end of any attempt may come at any time, twice, after a sweep, or after
its worker has died and its spill file was recovered. These cases need no actions of their own, because they are orders
of the actions here.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Final

ENDED: Final = frozenset({"solved", "failed", "cancelled"})
SETTLES: Final = ("complete", "retry", "refuse", "release", "bury")


@dataclass(frozen=True, slots=True)
class Attempt:
    """One execution under one claim; its fence is its position in the log, from 1."""

    worker: int
    number: int
    life: int
    outcome: str | None = None
    is_answer_kept: bool = False


@dataclass(frozen=True, slots=True)
class State:
    """A task and the log of its attempts. A life is the time between two restarts by hand."""

    status: str = "unsolved"
    attempts: int = 0
    life: int = 0
    answer: int | None = None  # the fence whose answer the task has
    answer_life: int | None = None
    log: tuple[Attempt, ...] = ()

    @property
    def fence(self) -> int:
        return len(self.log)

    @property
    def is_begun(self) -> bool:
        """Whether this life had a claim; before that, the row still shows the attempts of the previous life."""
        return any(attempt.life == self.life for attempt in self.log)

    @property
    def charged(self) -> int:
        """The number of calls in the ledger: all except those returned unsent."""
        return sum(attempt.outcome != "released" for attempt in self.log)

    def holds(self, fence: int) -> bool:
        return self.status == "running" and self.fence == fence

    def with_attempt(self, fence: int, **changes: object) -> State:
        attempt = replace(self.log[fence - 1], **changes)  # type: ignore[arg-type]
        return replace(self, log=(*self.log[: fence - 1], attempt, *self.log[fence:]))


@dataclass(frozen=True, slots=True)
class Action:
    """`who` is a worker (claim, or sweep of its expired lease) or a fence (ends of attempts)."""

    verb: str
    who: int = 0

    def __str__(self) -> str:
        return f"{self.verb} {self.who}" if self.who else self.verb


def act(state: State, action: Action, max_attempts: int) -> State:
    """Return the state after an action without a concurrent transaction."""
    match action.verb:
        case "claim":
            return _claim(state, action.who)
        case "sweep":
            return _sweep(state, action.who, max_attempts)
        case "cancel":
            return state if state.status in ENDED else replace(state, status="cancelled")
        case "restart":
            return _restart(state)
        case "promote":
            return replace(state, status="unsolved") if state.status == "delayed" else state
        case verb:
            return _settle(state, verb, action.who, max_attempts)


def _claim(state: State, worker: int) -> State:
    if state.status != "unsolved":
        return state
    number = state.attempts + 1 if state.is_begun else 1
    attempt = Attempt(worker, number, state.life)
    return replace(state, status="running", attempts=number, log=(*state.log, attempt))


def _sweep(state: State, worker: int, max_attempts: int) -> State:
    after = state
    for fence, attempt in enumerate(state.log, 1):
        if attempt.worker == worker and attempt.outcome is None:
            after = after.with_attempt(fence, outcome="lost")
            if state.holds(fence):
                after = replace(after, status="failed" if state.attempts >= max_attempts else "unsolved")
    return after


def _restart(state: State) -> State:
    if state.status not in ENDED and state.status != "delayed":
        return state
    return replace(state, status="unsolved", life=state.life + state.is_begun)


def _settle(state: State, verb: str, fence: int, max_attempts: int) -> State:
    attempt, holds = state.log[fence - 1], state.holds(fence)
    if attempt.outcome is not None and not (verb == "complete" and attempt.outcome == "lost"):
        return state
    if verb == "complete":
        waits = state.status in {"unsolved", "delayed"} and state.life == attempt.life
        if holds or waits:
            after = replace(state, status="solved", answer=fence, answer_life=attempt.life)
            return after.with_attempt(fence, outcome="completed")
        return state.with_attempt(fence, outcome="late", is_answer_kept=True)
    outcomes = {"retry": "retried", "refuse": "refused", "release": "released", "bury": "buried"}
    if not holds:
        ended = state.with_attempt(fence, outcome="released" if verb == "release" else "late")
        return ended.with_attempt(fence, is_answer_kept=verb == "bury")
    is_last = verb == "bury" or (verb == "retry" and state.attempts >= max_attempts)
    status = "failed" if is_last else "unsolved" if verb == "release" else "delayed"
    is_returned = verb in {"release", "refuse"}
    after = replace(state, status=status, attempts=state.attempts - is_returned)
    outcome = "buried" if is_last else outcomes[verb]
    return after.with_attempt(fence, outcome=outcome, is_answer_kept=verb == "bury")


# --- all states -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Bounds:
    """The bounds of the search: `claims` and `lives` of the task, and the attempts in each life."""

    workers: int = 2
    claims: int = 2
    lives: int = 2
    max_attempts: int = 2


def actions(state: State, bounds: Bounds) -> Iterator[Action]:
    """Yield the possible next actions. Workers are interchangeable, so the first claim is by the first worker."""
    if state.fence < bounds.claims or state.status != "unsolved":
        for worker in range(1, min(bounds.workers, 1 + len({attempt.worker for attempt in state.log})) + 1):
            yield Action("claim", worker)
    for worker in sorted({attempt.worker for attempt in state.log}):
        yield Action("sweep", worker)
    for fence in range(1, state.fence + 1):
        for verb in SETTLES:
            yield Action(verb, fence)
    yield Action("cancel")
    yield Action("promote")
    if state.life + 1 < bounds.lives or not state.is_begun:
        yield Action("restart")


def reachable(bounds: Bounds) -> dict[State, dict[Action, State]]:
    """Return every reachable state, breadth first, with all possible actions and their results."""
    found: dict[State, dict[Action, State]] = {}
    ahead = deque([State()])
    seen = {State()}
    while ahead:
        state = ahead.popleft()
        found[state] = {action: act(state, action, bounds.max_attempts) for action in actions(state, bounds)}
        for after in found[state].values():
            if after not in seen:
                seen.add(after)
                ahead.append(after)
    return found
