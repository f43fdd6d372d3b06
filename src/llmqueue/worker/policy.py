"""Whose fault was it, and what happens to the task: one pure function (design I11)."""

from __future__ import annotations

import random
from typing import assert_never

from llmqueue.backend import circuit_breaker
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


def decide(reply: Reply, attempt_no: int, rng: random.Random, blame: circuit_breaker.Blame = "attempt") -> Decision:
    """Returns what becomes of a task whose `attempt_no`-th attempt (from 1) got this reply.

    `blame` is what other calls say about a TransientError: if the backend or the model fails them too, it costs no
    attempt.
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
        case TransientError(error_class, message):
            return _break_down(error_class, message, backoff_s(attempt_no, rng), blame)
        case PermanentError(error_class, message):
            return Bury(error_class, message)
        case _:
            assert_never(reply)


def _break_down(error_class: str, message: str, delay_s: float, blame: circuit_breaker.Blame) -> Retry:
    may_be_backends = circuit_breaker.blames(error_class)
    match blame:
        case "attempt":
            return Retry(error_class, message, delay_s, counts=True, may_be_backends=may_be_backends)
        case "model":
            return Retry(error_class, message, 0.0, counts=False, refusal="failures", may_be_backends=may_be_backends)
        case "backend":
            # how long is the database's to say: it knows how often the task has been spared
            return Retry(error_class, message, 0.0, counts=False, may_be_backends=may_be_backends)
        case _:
            assert_never(blame)


def backoff_s(attempt_no: int, rng: random.Random) -> float:
    """Returns an exponential pause with full jitter, so that tasks that failed together do not return together."""
    ceiling_s = min(BACKOFF_CAP_S, BACKOFF_BASE_S * 2.0 ** min(attempt_no - 1, 30))
    return rng.uniform(0.05, ceiling_s)
