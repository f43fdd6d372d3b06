"""The values that travel between the loops: what a claim gives, what a backend replies, how an attempt ends."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal, TypeVar, dataclass_transform
from uuid import UUID

# The only place where Any is meant: JSON as it came.
Json = Any
TaskId = int | str | UUID
_T = TypeVar("_T")


@dataclass_transform(frozen_default=True)
def value(cls: type[_T]) -> type[_T]:
    """A frozen dataclass to the type checker. A really frozen one takes three times as long to make: a task has ten."""
    return dataclass(slots=True, unsafe_hash=True)(cls)


@value
class Task:
    """A claimed task. `prompt` is text, or JSON when the user's column is json or jsonb; `params` is any JSON.

    `unreadable` says why it cannot be sent, when its JSON is beyond what can be read. `tokens` is what it was charged,
    `input_charge` the part of that for its input; None: the model has no limit on tokens.
    """

    id: TaskId
    fence: int
    attempt_no: int
    max_attempts: int
    restarts: int
    prompt: Json
    params: Json
    unreadable: str | None = None
    tokens: int | None = None
    input_charge: int | None = None
    is_hot: bool = False

    @property
    def idempotency_key(self) -> str:
        """The same for all attempts of one start, another after a restart by hand."""
        return f"{self.id}:{self.restarts}"


# How a model's tasks are sent: each in a call of its own, several in one, or as the worker sees fit.
Dispatch = Literal["auto", "single", "batch"]


@value
class ClaimRow:
    """A row of llmqueue.claim, as it comes."""

    model: str
    task_id: TaskId | None
    fence: int
    attempt_no: int
    max_attempts: int
    restarts: int
    prompt: str | None
    params: str | None
    tokens: int | None
    input_charge: int | None
    is_hot: bool | None
    reason: str | None
    retry_in_s: float | None
    waited_s: float
    clock_s: float | None
    timeout_s: float
    guard_s: float
    dispatch: Dispatch
    max_batch: int
    char_class_ratio: float | None
    claim_state: str | None
    epoch: int | None


# Of the guard, what the worker has to send a call; the rest is for what the ways of two calls differ by.
SEND_PART = 0.4


@value
class Grant:
    """Leave to send one call of `model` before `send_before` (this process's monotonic clock, seconds).

    `char_class_ratio` is what our own estimate of the prompt is multiplied by; None: 1. A call may carry up to
    `max_batch` tasks of one claim, if `dispatch` lets it.
    """

    model: str
    task: Task
    granted_at: float
    send_before: float
    timeout_s: float
    char_class_ratio: float | None = None
    dispatch: Dispatch = "single"
    max_batch: int = 1


@value
class Room:
    """How many more tasks may be started: `for_any` of any kind, and `for_hot` more that are hot."""

    for_any: int
    for_hot: int

    @property
    def total(self) -> int:
        return self.for_any + self.for_hot

    def cut(self, at_most: int) -> Room:
        """Returns the same for no more than `at_most` tasks; the room for hot ones goes first."""
        total, for_any = min(self.total, at_most), min(self.for_any, at_most)
        return Room(for_any, total - for_any)


@value
class Refusal:
    """What a claim found for one model.

    `reason` is None when all slots were filled, else rpm, pace, burst, tpm, day, cooldown, concurrency, empty, paused,
    contended or unknown; `retry_in_s` says when more may be had, None when only a wake or the poll can tell.
    """

    model: str
    reason: str | None
    retry_in_s: float | None


@value
class Claim:
    """What one claim gave: tasks to send, and what it found for each model."""

    grants: tuple[Grant, ...]
    refusals: tuple[Refusal, ...]
    # the database's clock minus ours: at least and at most, over this round trip; None if nothing was looked at
    clock_offset_s: tuple[float, float] | None
    # JSON that only the database reads, for the next claim: whose turn it is; None: as before
    claim_state: str | None = None
    # number of the database's epoch: another one after a failover or a restore that may have lost state
    epoch: int | None = None


@value
class Usage:
    """What the backend counted; None: it did not say."""

    input_tokens: int | None = None
    output_tokens: int | None = None


# --- what a backend replies -------------------------------------------------------------------------------------

# quota: 429; capacity: 503, 529; credentials: 401, 407; failures: half of its last calls ended in a 5xx or a reset
ThrottleKind = Literal["quota", "capacity", "credentials", "failures"]


@value
class Answer:
    """200 with an answer: text, or JSON."""

    answer: Json
    usage: Usage


@value
class Late:
    """The grant had run out before the first byte; nothing was sent."""


@value
class Unreachable:
    """No connection: the backend's fault; nothing was sent."""

    message: str


@value
class Throttled:
    """429, 503, 529 or 401: the model's. `retry_after_s` is None when it did not say."""

    kind: ThrottleKind
    error_class: str
    message: str
    retry_after_s: float | None


@value
class TransientError:
    """Timeout, reset, another 5xx, an unreadable reply: the attempt's. The call may have been paid."""

    error_class: str
    message: str


@value
class PermanentError:
    """Another 4xx: the task's. No other try would help."""

    error_class: str
    message: str


Reply = Answer | Late | Unreachable | Throttled | TransientError | PermanentError


# --- how an attempt ends ----------------------------------------------------------------------------------------


@value
class Complete:
    """Write the answer to the task."""

    answer: Json
    usage: Usage


@value
class Retry:
    """Run again after `delay_s`; `counts` says whether it uses up one of the task's attempts.

    With a `refusal` the model has a cooldown of `pause_s`, or for as long as the database thinks fit when that is None,
    and the task waits until that ends; `delay_s` is added. `may_be_backends`: a 5xx or a lost connection, which starts
    another cooldown if the call was the model's probe.
    """

    error_class: str
    error: str
    delay_s: float
    counts: bool
    refusal: ThrottleKind | None = None
    pause_s: float | None = None
    may_be_backends: bool = False


@value
class Bury:
    """End the task as a dead letter; `answer` is kept in the attempt log."""

    error_class: str
    error: str
    answer: str | None = None


@value
class Release:
    """Give the task back unsent, with its grant and its attempt."""

    error_class: str


Decision = Complete | Retry | Bury | Release

LATE = Release("late_grant")


@value
class Settlement:
    """The end of one attempt, on its way to the database. Times in seconds; None: not known.

    `char_class_estimate` is our estimate of the input tokens, from which the database learns `char_class_ratio`.
    """

    grant: Grant
    decision: Decision
    sent_after_s: float | None
    latency_s: float | None
    char_class_estimate: int | None = None

    def without_answer(self) -> Settlement:
        """The same, light enough to be kept in memory while the answer lies in a file."""
        if isinstance(self.decision, Complete | Bury):
            return replace(self, decision=replace(self.decision, answer=None))
        return self

    def after(self, waited_s: float) -> Settlement:
        """The same, settled that long after it ended: the database counts pauses from when it learns of them."""
        if not isinstance(self.decision, Retry):
            return self
        delay_s = max(0.0, self.decision.delay_s - waited_s)
        pause_s = None if self.decision.pause_s is None else max(0.0, self.decision.pause_s - waited_s)
        return replace(self, decision=replace(self.decision, delay_s=delay_s, pause_s=pause_s))
