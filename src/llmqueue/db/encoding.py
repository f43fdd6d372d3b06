"""What a row or a backend may hold that cannot be sent or stored, found before it can hurt its neighbours."""

from __future__ import annotations

import json
import math

from llmqueue.types import ClaimRow, Json, Task, TaskId

NUL = "the answer has a NUL character, which Postgres cannot store"


def read_task(key: TaskId, row: ClaimRow, *, prompt_is_json: bool) -> Task:
    """Returns the task; one whose prompt or params cannot be read has `unreadable` set, and must not be sent."""
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
    json.dumps(
        value, ensure_ascii=False
    ).encode()  # a lone surrogate cannot be sent: UnicodeEncodeError is a ValueError
    return value


def _finite(text: str) -> float:
    number = float(text)
    if math.isinf(number):
        raise ValueError(f"the number {text[:40]} is too large")
    return number


def why_unstorable(answer: Json) -> str | None:
    """Returns why Postgres cannot hold this answer as text or JSON, or None if it can."""
    if isinstance(answer, str) and answer.isascii():  # nearly every answer, or a short one: nothing else to look for
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
    """Tells whether a text anywhere in the value has a NUL."""
    # no recursion: json.dumps goes deeper than Python's own stack does, and a paid answer must not fail here
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
    """Returns the answer as ASCII JSON for the attempt log, which any database can hold; None if it is no JSON."""
    try:
        return json.dumps(answer)
    except (TypeError, ValueError, RecursionError):
        return None


def storable(text: str) -> str:
    """Returns a message with what Postgres cannot hold replaced."""
    return text.replace("\x00", "\N{REPLACEMENT CHARACTER}").encode("utf-8", "replace").decode()
