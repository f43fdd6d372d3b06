"""What becomes of a task, by whose fault its attempt's end was: one pure function (design I11)."""

from __future__ import annotations

import random
from typing import assert_never

from llmqueue.backend.classify import NO_SUCH_CALL, Blame, may_be_backends
from llmqueue.db.encoding import in_ascii, why_unstorable
from llmqueue.types import (
    LATE,
    Answer,
    Bury,
    Complete,
    Decision,
    Late,
    PermanentError,
    Release,
    Reply,
    Retry,
    Throttled,
    TransientError,
    Unreachable,
)

BACKOFF_BASE_S = 1.0
BACKOFF_CAP_S = 300.0
# Tasks that were refused together should not come back together; the pause itself is the model's, kept in the database.
REFUSAL_JITTER = 0.1
REFUSAL_JITTER_CAP_S = 1.0


def decide(reply: Reply, blame: Blame | None, attempt_no: int, rng: random.Random) -> Decision:
    """Returns what becomes of a task whose `attempt_no`-th attempt (from 1) got this reply.

    `blame` is what BackendHealth.judge() said of it, or classify() where there are no other calls to compare with.
    """
    match reply:
        case Answer(answer, usage):
            unstorable = why_unstorable(answer)
            if unstorable:
                return Bury("unstorable_answer", unstorable, answer=in_ascii(answer))
            return Complete(answer, usage)
        case Late():
            return LATE
        case Unreachable(message):
            return Release(f"unreachable: {message}"[:200])
        case Throttled(kind, error_class, message, pause_s):
            jitter_s = REFUSAL_JITTER_CAP_S if pause_s is None else min(REFUSAL_JITTER * pause_s, REFUSAL_JITTER_CAP_S)
            return Retry(error_class, message, rng.uniform(0, jitter_s), counts=False, refusal=kind, pause_s=pause_s)
        case TransientError(error_class, message) | PermanentError(error_class, message):
            return _failed(error_class, message, blame or "attempt", attempt_no, rng)
        case _:
            assert_never(reply)


def _failed(error_class: str, message: str, blame: Blame, attempt_no: int, rng: random.Random) -> Decision:
    is_suspect = may_be_backends(error_class)
    match blame:
        case "task":
            return Bury(error_class, message)
        case "call":
            # Each of its tasks is tried alone.
            return Retry(error_class, message, 0.0, counts=error_class not in NO_SUCH_CALL)
        case "attempt":
            return Retry(error_class, message, backoff_s(attempt_no, rng), counts=True, may_be_backends=is_suspect)
        case "model":
            return Retry(error_class, message, 0.0, counts=False, refusal="failures", may_be_backends=is_suspect)
        case "backend":
            # The database says how long: it knows how many free retries the task has had.
            return Retry(error_class, message, 0.0, counts=False, may_be_backends=is_suspect)
        case _:
            assert_never(blame)


def backoff_s(attempt_no: int, rng: random.Random) -> float:
    """Returns an exponential pause with full jitter, so that tasks that failed together do not return together."""
    ceiling_s = min(BACKOFF_CAP_S, BACKOFF_BASE_S * 2.0 ** min(attempt_no - 1, 30))
    return rng.uniform(0.05, ceiling_s)
