"""Finds values that cannot be sent to a backend or stored in Postgres, before they fail a whole statement."""

from __future__ import annotations

import json
import math

from llmqueue.types import ClaimRow, Json, Task, TaskId

NUL = "the answer has a NUL character, which Postgres cannot store"


def read_task(key: TaskId, row: ClaimRow, *, prompt_is_json: bool) -> Task:
    """Returns the task. If its prompt or params cannot be read, `unreadable` is set and the task must not be sent."""
    unreadable = None
    prompt: Json = row.prompt
    params: Json = None
    try:
        if row.prompt is None:
            raise ValueError("the prompt is NULL")
        if prompt_is_json:
            prompt = _read_json(row.prompt)
        if row.params is not None:
            params = _read_json(row.params)
    except (ValueError, RecursionError) as error:
        unreadable = f"{type(error).__name__}: {error}"
    return Task(
        key,
        row.fence,
        row.attempt_no,
        row.max_attempts,
        row.restarts,
        prompt,
        params,
        unreadable,
        row.tokens,
        row.input_charge,
        bool(row.is_hot),
    )


def _read_json(text: str) -> Json:
    value = json.loads(text, parse_float=_finite)
    # Raises for a lone surrogate, which cannot be sent: UnicodeEncodeError is a ValueError.
    json.dumps(value, ensure_ascii=False).encode()
    return value


def _finite(text: str) -> float:
    number = float(text)
    if math.isinf(number):
        raise ValueError(f"the number {text[:40]} is too large")
    return number


def why_unstorable(answer: Json) -> str | None:
    """Returns why Postgres cannot store this answer as text or JSON, or None if it can."""
    if isinstance(answer, str) and answer.isascii():  # fast path: in ASCII text only a NUL can be wrong
        return NUL if "\x00" in answer else None
    try:
        text = answer if isinstance(answer, str) else json.dumps(answer, ensure_ascii=False, allow_nan=False)
        text.encode()
    except UnicodeEncodeError:
        return "the answer has a lone surrogate, which is not valid Unicode"
    except (TypeError, ValueError, RecursionError) as error:
        return f"the answer is not JSON: {error}"
    return NUL if has_nul(answer) else None


def has_nul(value: Json) -> bool:
    """Returns whether any text inside the value has a NUL."""
    # no recursion: json.dumps nests deeper than Python's own stack, and an answer that was paid for must not fail here
    left = [value]
    while left:
        match left.pop():
            case str(text):
                if "\x00" in text:
                    return True
            case list(items):
                left += items
            case dict(items):
                left += items.keys()
                left += items.values()
    return False


def in_ascii(answer: Json) -> str | None:
    """Returns the answer as ASCII JSON for the attempt log, which any database can store; None if it is no JSON."""
    try:
        return json.dumps(answer)
    except (TypeError, ValueError, RecursionError):
        return None


def storable(text: str) -> str:
    """Returns a message in which all characters that Postgres cannot store are replaced."""
    return text.replace("\x00", "\N{REPLACEMENT CHARACTER}").encode("utf-8", "replace").decode()
