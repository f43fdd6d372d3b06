"""A 200 with an error inside: gateways send one when the model behind them fails after the status has gone out."""

from __future__ import annotations

import json

from llmqueue.backend.http import MESSAGE_CHARS, reply_of_status
from llmqueue.backend.retry_after import read_pause
from llmqueue.types import Json, Reply, TransientError

# What the Models Backend, OpenAI and Anthropic call them.
STATUS_OF = {
    "rate_limited": 429,
    "rate_limit_exceeded": 429,
    "rate_limit_error": 429,
    "unavailable": 503,
    "overloaded": 529,
    "overloaded_error": 529,
}


def read_error(body: Json) -> Reply | None:
    """Returns what {"error": …} in a reply stands for, None if there is none.

    {"error": {"type", "message", "retry_after"?}} as in an item of a batch, {"error": {"code": 502, …}}, or any other
    value. What names neither a status nor a type that is known is the attempt's: it may go better next time.
    """
    error = body.get("error") if isinstance(body, dict) else None
    if error is None or error is False:
        return None
    words = error.get("message", error) if isinstance(error, dict) else error
    said = words if isinstance(words, str) else json.dumps(words)
    message = f"200 with an error inside: {' '.join(said.split())}"[:MESSAGE_CHARS]
    status = _status(error) if isinstance(error, dict) else None
    if status is None:
        return TransientError("error_in_reply", message)
    return reply_of_status(status, message, read_pause(error.get("retry_after")))


def _status(error: dict[str, Json]) -> int | None:
    for name in ("code", "status", "type"):
        value = error.get(name)
        if isinstance(value, str):
            value = STATUS_OF.get(value)
        if isinstance(value, int) and not isinstance(value, bool) and 400 <= value < 600:
            return value
    return None
