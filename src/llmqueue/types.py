"""The values that the loops exchange: results of a claim, replies of a backend, ends of attempts."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal, TypeVar, dataclass_transform
from uuid import UUID

# The only intended use of Any: JSON as it was received.
Json = Any
TaskId = int | str | UUID
_T = TypeVar("_T")


@dataclass_transform(frozen_default=True)
def value(cls: type[_T]) -> type[_T]:
    """Makes a dataclass that the type checker treats as frozen.

    A really frozen one takes three times as long to create, and each task needs about ten of them.
    """
    return dataclass(slots=True, unsafe_hash=True)(cls)


@value
class Task:
    """A claimed task. `prompt` is text, or JSON when the user's column is json or jsonb; `params` is any JSON.

    `unreadable` is the reason why its JSON cannot be read and the task cannot be sent, else None. `tokens` is the
    number of tokens charged, `input_charge` the input's part of it; both are None if the model has no token limit.
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
        """The same for all attempts of a task; it changes when the task is restarted by hand."""
        return f"{self.id}:{self.restarts}"


# How a model's tasks are sent: one per call, several per call, or as the worker decides.
Dispatch = Literal["auto", "single", "batch"]


@value
class ClaimRow:
    """A row of llmqueue.claim, unchanged."""

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


# The worker's part of the guard, for sending a call. The rest covers differences in network delay between two calls.
SEND_PART = 0.4


@value
class Grant:
    """Permission to send one call of `model` before `send_before` (seconds of this process's monotonic clock).

    The worker multiplies its own estimate of the prompt by `char_class_ratio` (None: 1). A call may carry up to
    `max_batch` tasks of one claim, if `dispatch` allows it.
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
    """How many more tasks may start: `for_any` of any kind, and `for_hot` more that are hot."""

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
    """Why one model gave no tasks, or no more tasks, in a claim.

    `reason` is None if all slots were filled, else rpm, pace, burst, tpm, day, cooldown, concurrency, empty, paused,
    contended or unknown. `retry_in_s` is the time until the model may give more; None: only a wake-up or the poll can
    show it.
    """

    model: str
    reason: str | None
    retry_in_s: float | None


@value
class Claim:
    """The result of one claim: tasks to send, and one refusal per model asked."""

    grants: tuple[Grant, ...]
    refusals: tuple[Refusal, ...]
    # least and greatest possible value of database clock minus our clock; None if the claim looked at no model
    clock_offset_s: tuple[float, float] | None
    # JSON for the next claim, which only the database reads; None: keep the previous one
    claim_state: str | None = None
    # number of the database's epoch; it changes after a failover or a restore that may have lost state
    epoch: int | None = None


@value
class Usage:
    """The tokens that the backend counted; None: it did not report them."""

    input_tokens: int | None = None
    output_tokens: int | None = None


# --- replies of a backend ---------------------------------------------------------------------------------------

# quota: 429; capacity: 503, 529; credentials: 401, 407; failures: half of the model's last calls ended in a 5xx or a
# lost connection
ThrottleKind = Literal["quota", "capacity", "credentials", "failures"]


@value
class Answer:
    """A 200 with an answer, which is text or JSON."""

    answer: Json
    usage: Usage


@value
class Late:
    """The grant expired before the first byte; nothing was sent."""


@value
class Unreachable:
    """There is no connection, which is the backend's fault; nothing was sent."""

    message: str


@value
class Throttled:
    """The model refused the call: 429, 503, 529, 401 or 407. `retry_after_s` is None if the reply names no time."""

    kind: ThrottleKind
    error_class: str
    message: str
    retry_after_s: float | None


@value
class TransientError:
    """The attempt failed: a timeout, a reset, another 5xx, an unreadable reply. The call may have been paid for."""

    error_class: str
    message: str


@value
class PermanentError:
    """The task failed for good: another 4xx, which a retry would not change."""

    error_class: str
    message: str


Reply = Answer | Late | Unreachable | Throttled | TransientError | PermanentError


# --- ends of attempts -------------------------------------------------------------------------------------------


@value
class Complete:
    """Write the answer to the task."""

    answer: Json
    usage: Usage


@value
class Retry:
    """Run the task again after `delay_s`; `counts` tells whether this consumes one of its attempts.

    With a `refusal` the database starts a cooldown of the model, for `pause_s` or, if that is None, for a time of its
    own choice. The task then waits until `delay_s` after the end of the cooldown. `may_be_backends` marks a 5xx or a
    lost connection; if the call was the model's probe, the cooldown starts again.
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
    """Return the task unsent, with its grant and its attempt."""

    error_class: str


Decision = Complete | Retry | Bury | Release

LATE = Release("late_grant")


@value
class Settlement:
    """The end of one attempt, on its way to the database. Times are in seconds; None: unknown.

    `char_class_estimate` is the worker's estimate of the input tokens; the database learns `char_class_ratio` from it.
    """

    grant: Grant
    decision: Decision
    sent_after_s: float | None
    latency_s: float | None
    char_class_estimate: int | None = None

    def without_answer(self) -> Settlement:
        """Returns the settlement without its answer, to be kept in memory while the answer is in a file."""
        if isinstance(self.decision, Complete | Bury):
            return replace(self, decision=replace(self.decision, answer=None))
        return self

    def after(self, waited_s: float) -> Settlement:
        """Returns the settlement for `waited_s` later.

        The database counts delays from the moment it is told of them, so the time already waited is subtracted.
        """
        if not isinstance(self.decision, Retry):
            return self
        delay_s = max(0.0, self.decision.delay_s - waited_s)
        pause_s = None if self.decision.pause_s is None else max(0.0, self.decision.pause_s - waited_s)
        return replace(self, decision=replace(self.decision, delay_s=delay_s, pause_s=pause_s))
