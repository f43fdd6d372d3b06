"""Whose fault is it? Every answer of a backend is classified here, once, and nowhere else (design I11).

Two steps. reply_of_status() and read_error() make a Reply of what came over HTTP; an adapter of somebody else's makes
its own. classify() then says of any Reply whose fault it is and what it shows of the backend. Two things remain for
others: whether a failed call is the backend's depends on the other calls (circuit_breaker.py), and what becomes of the
task is worker/policy.py's.
"""

from __future__ import annotations

import json
from typing import Final, Literal, assert_never

import httpx

from llmqueue.backend.retry_after import read_pause
from llmqueue.types import (
    Answer,
    Json,
    Late,
    PermanentError,
    Reply,
    Throttled,
    TransientError,
    Unreachable,
    value,
)

# task: no other try would help. attempt: another try may. call: one of several tasks in it, not known which.
# model: all its tasks wait. backend: costs no attempt.
Blame = Literal["task", "attempt", "call", "model", "backend"]
# works: it answered, whatever it said. fails: a 5xx or a lost connection. silent: this reply shows nothing.
Evidence = Literal["works", "fails", "unreachable", "silent"]

MESSAGE_CHARS: Final = 300
CAPACITY: Final = {503: "unavailable", 529: "overloaded"}
# Our credentials are wrong, not the task: nothing is buried for them.
CREDENTIALS: Final = {401, 407}
CREDENTIALS_PAUSE_S: Final = 60.0
# The reply to a batch of a backend that has no such call.
NO_SUCH_CALL: Final = {"http_404", "http_405"}
# The types of errors of the Models Backend, OpenAI and Anthropic.
STATUS_OF: Final = {
    "rate_limited": 429,
    "rate_limit_exceeded": 429,
    "rate_limit_error": 429,
    "unavailable": 503,
    "overloaded": 529,
    "overloaded_error": 529,
}


@value
class Classification:
    """`blame` None: it is an answer, or nothing was sent. `evidence` is what the reply shows of the backend."""

    blame: Blame | None
    evidence: Evidence


_ANSWERED: Final = Classification(None, "works")
_NOT_SENT: Final = Classification(None, "silent")
_UNREACHABLE: Final = Classification("backend", "unreachable")
_THROTTLED: Final = Classification("model", "silent")
_TIMED_OUT: Final = Classification("attempt", "silent")
_BROKEN: Final = Classification("attempt", "fails")
_UNUSABLE: Final = Classification("attempt", "works")
_REJECTED: Final = Classification("task", "works")


def classify(reply: Reply) -> Classification:
    """Returns whose fault a reply is as far as it tells by itself.

    With the evidence "fails" the blame is provisional: the circuit breaker may find it to be the model's or the
    backend's.
    """
    match reply:
        case Answer():
            return _ANSWERED
        case Late():
            return _NOT_SENT
        case Unreachable():
            return _UNREACHABLE
        case Throttled():
            return _THROTTLED
        case TransientError(error_class):
            if may_be_backends(error_class):
                return _BROKEN
            # One slow prompt says nothing about the backend.
            return _TIMED_OUT if error_class == "timeout" else _UNUSABLE
        case PermanentError():
            return _REJECTED
        case _:
            assert_never(reply)


def may_be_backends(error_class: str) -> bool:
    """Tells the failures that may be the backend's, a 5xx or a lost connection, from those of one attempt."""
    return error_class == "connection_lost" or error_class.startswith("http_5")


def reply_of_status(status: int, message: str, asked_s: float | None) -> Reply:
    """Returns what a status other than 200 stands for; `asked_s` is the pause that the backend asked for."""
    if status in CAPACITY:
        return Throttled("capacity", CAPACITY[status], message, asked_s)
    if status == httpx.codes.TOO_MANY_REQUESTS:
        return Throttled("quota", "rate_limited", message, asked_s)
    if status in CREDENTIALS:
        return Throttled("credentials", "credentials_refused", message, CREDENTIALS_PAUSE_S)
    if status == httpx.codes.REQUEST_TIMEOUT or not httpx.codes.is_client_error(status):
        return TransientError(f"http_{status}", message)
    return PermanentError(f"http_{status}", message)


def read_error(body: Json) -> Reply | None:
    """Returns what {"error": …} in the body of a 200 stands for, None if there is none.

    Some gateways answer 200 and put the error of the model inside. It is {"error": {"type", "message",
    "retry_after"?}} as in an item of a batch, {"error": {"code": 502, …}}, or any other value. An error that names
    neither a status nor a known type is the attempt's: it may go better next time.
    """
    error = body.get("error") if isinstance(body, dict) else None
    if error is None or error is False:
        return None
    content = error.get("message", error) if isinstance(error, dict) else error
    text = content if isinstance(content, str) else json.dumps(content)
    message = f"200 with an error inside: {' '.join(text.split())}"[:MESSAGE_CHARS]
    status = _status(error) if isinstance(error, dict) else None
    if status is None:
        return TransientError("error_in_reply", message)
    return reply_of_status(status, message, read_pause(error.get("retry_after")))


def _status(error: dict[str, Json]) -> int | None:
    for name in ("code", "status", "type"):
        status = error.get(name)
        if isinstance(status, str):
            status = STATUS_OF.get(status)
        if isinstance(status, int) and not isinstance(status, bool) and 400 <= status < 600:
            return status
    return None
