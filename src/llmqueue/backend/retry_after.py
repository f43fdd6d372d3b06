"""When a backend that refused a call wants the next one: from its headers, or from the error in its body.

A header that cannot be read is ignored. Nothing here raises.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

from llmqueue.types import Json

# A backend that says "in a year" is mistaken more often than right; a day later it may say so again.
CAP_S = 86_400.0
# An error with a pause in it is short; what is longer is not parsed for it.
BODY_BYTES = 65_536

# What OpenAI, Azure and Groq call the two, and how they write when each is full again: `6m0s`, `20ms`, `2m59.56s`.
OPENAI = ("requests", "tokens")
ANTHROPIC = ("requests", "tokens", "input-tokens", "output-tokens")
UNIT_S = {"d": 86_400.0, "h": 3600.0, "m": 60.0, "s": 1.0, "ms": 1e-3, "us": 1e-6, "µs": 1e-6, "ns": 1e-9}
PART = re.compile(r"([0-9]+(?:\.[0-9]*)?|\.[0-9]+)(ms|us|µs|ns|[dhms])")


def read(headers: Mapping[str, str], body: bytes) -> float | None:
    """Returns the seconds that the backend asks for in so many words, None if it does not.

    `retry-after-ms` is believed before `Retry-After` (seconds or a date), and both before a `retry_after` in the body.
    """
    milliseconds = _number(headers.get("retry-after-ms"))
    if milliseconds is not None:
        return _capped(milliseconds / 1000)
    asked_s = _seconds_or_date(headers)
    return _in_body(body) if asked_s is None else asked_s


def until_reset(headers: Mapping[str, str]) -> float | None:
    """Returns the seconds until a provider's quota is there again, by the headers that it sends with each reply.

    A quota of which something remains is not what refused the call. Of the others the last one to come back counts.
    """
    resets = [
        _duration(headers.get(f"x-ratelimit-reset-{quota}"))
        for quota in OPENAI
        if _is_used_up(headers.get(f"x-ratelimit-remaining-{quota}"))
    ]
    resets += [
        _until(_rfc3339(headers.get(f"anthropic-ratelimit-{quota}-reset")), headers)
        for quota in ANTHROPIC
        if _is_used_up(headers.get(f"anthropic-ratelimit-{quota}-remaining"))
    ]
    # a quota that is used up and there again at once is not what refused the call either
    return max((reset_s for reset_s in resets if reset_s), default=None)


def _is_used_up(remaining: str | None) -> bool:
    number = _number(remaining)
    return number is None or number <= 0


def _seconds_or_date(headers: Mapping[str, str]) -> float | None:
    value = headers.get("retry-after")
    seconds = _number(value)
    return _until(_http_date(value), headers) if seconds is None else _capped(seconds)


def _until(moment: datetime | None, headers: Mapping[str, str]) -> float | None:
    """By the clock of the one who said it, where the reply has its date: ours may be wrong."""
    if moment is None:
        return None
    said_at = _http_date(headers.get("date")) or datetime.now(UTC)
    return _capped((moment - said_at).total_seconds())


def _in_body(body: bytes) -> float | None:
    """The form of the Models Backend: {"error": {"type", "message", "retry_after"}}."""
    if len(body) > BODY_BYTES:
        return None
    try:
        asked: Json = json.loads(body)["error"]["retry_after"]
    except (ValueError, LookupError, TypeError, RecursionError):
        return None
    return read_pause(asked)


def read_pause(asked: Json) -> float | None:
    """Returns the seconds of a `retry_after` in a body, None if they are no number."""
    is_value = isinstance(asked, int | float | str) and not isinstance(asked, bool)
    return _capped(_number(str(asked))) if is_value else None


def _number(value: str | None) -> float | None:
    try:
        number = math.nan if value is None else float(value)
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def _duration(value: str | None) -> float | None:
    """Reads `1h2m3.5s`, `20ms` and plain seconds."""
    seconds = _number(value)
    if seconds is None and value is not None:
        parts = PART.findall(value)
        if parts and "".join(number + unit for number, unit in parts) == value.strip():
            seconds = sum(float(number) * UNIT_S[unit] for number, unit in parts)
    return _capped(seconds)


def _http_date(value: str | None) -> datetime | None:
    try:
        moment = None if value is None else parsedate_to_datetime(value)
    except (ValueError, LookupError, TypeError, OverflowError):
        return None
    return _in_utc(moment)


def _rfc3339(value: str | None) -> datetime | None:
    try:
        moment = None if value is None else datetime.fromisoformat(value)
    except ValueError:
        return None
    return _in_utc(moment)


def _in_utc(moment: datetime | None) -> datetime | None:
    return moment.replace(tzinfo=UTC) if moment is not None and moment.tzinfo is None else moment


def _capped(seconds: float | None) -> float | None:
    return None if seconds is None or not math.isfinite(seconds) else min(max(0.0, seconds), CAP_S)
