"""Whose fault was it, and what happens to the task: one pure function (design I11)."""

from __future__ import annotations

import json
import random
from typing import assert_never

from llmqueue.models import (
    LATE,
    Answer,
    Breakdown,
    Bury,
    Complete,
    Decision,
    Json,
    Late,
    Refusal,
    Rejection,
    Release,
    Reply,
    Retry,
    Unreachable,
)
from llmqueue.texts import why_unstorable

BACKOFF_BASE_S = 1.0
BACKOFF_CAP_S = 300.0
# A refusal without Retry-After: long enough not to hammer the model, short enough to notice that it is back.
REFUSAL_PAUSE_S = 10.0


def decide(reply: Reply, attempt_no: int, rng: random.Random) -> Decision:
    """Returns what becomes of a task whose `attempt_no`-th attempt (from 1) got this reply."""
    match reply:
        case Answer(answer, usage):
            unstorable = why_unstorable(answer)
            if unstorable:
                return Bury("unstorable_answer", unstorable, answer=_ascii(answer))
            return Complete(answer, usage)
        case Late():
            return LATE
        case Unreachable(message):
            return Release(f"unreachable: {message}"[:200])
        case Refusal(error_class, message, retry_after_s):
            pause_s = REFUSAL_PAUSE_S if retry_after_s is None else retry_after_s
            return Retry(error_class, message, pause_s + rng.uniform(0, 0.1 * pause_s + 0.1), counts=False)
        case Breakdown(error_class, message):
            return Retry(error_class, message, backoff_s(attempt_no, rng), counts=True)
        case Rejection(error_class, message):
            return Bury(error_class, message)
        case _:
            assert_never(reply)


def backoff_s(attempt_no: int, rng: random.Random) -> float:
    """Returns an exponential pause with full jitter, so that tasks that failed together do not return together."""
    ceiling_s = min(BACKOFF_CAP_S, BACKOFF_BASE_S * 2.0 ** min(attempt_no - 1, 30))
    return rng.uniform(0.05, ceiling_s)


def _ascii(answer: Json) -> str | None:
    """Returns the answer as ASCII JSON for the attempt log, None if it is not even that."""
    try:
        return json.dumps(answer)
    except (TypeError, ValueError, RecursionError):
        return None
