"""backend.retry_after: a pause is what the backend said, in whatever form it said it, and never longer than a day."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llmqueue.backend import retry_after
from llmqueue.backend.http import reply_of
from llmqueue.types import Throttled

DAY_S = 86_400.0
DATE = "Sat, 21 Nov 2026 10:00:00 GMT"


def refused(status: int, headers: dict[str, str], body: object = None) -> Throttled:
    content = b"" if body is None else json.dumps(body).encode()
    reply = reply_of(httpx.Response(status, headers=headers, content=content))
    assert isinstance(reply, Throttled)
    return reply


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"retry-after": "3"}, 3.0),
        ({"retry-after": "18.642"}, 18.642),
        ({"retry-after": " 7 "}, 7.0),
        ({"retry-after": "0"}, 0.0),
        ({"retry-after": "-1"}, 0.0),
        ({"retry-after": "1e18"}, DAY_S),
        ({"retry-after": "inf"}, None),
        ({"retry-after": "nan"}, None),
        ({"retry-after": "soon"}, None),
        ({"retry-after": ""}, None),
        ({}, None),
        ({"retry-after": "1 Jan 99999999999999999999 00:00:00 GMT"}, None),
        ({"retry-after": "Wed, 21 Oct 2015 07:28:00 GMT"}, 0.0),
        ({"retry-after": "Sat, 21 Nov 2026 10:00:42 GMT", "date": DATE}, 42.0),
        ({"retry-after": "Sat, 21 Nov 2026 11:01:00 +0100", "date": DATE}, 60.0),
        ({"retry-after": "Tue, 01 Jan 2999 00:00:00 GMT"}, DAY_S),
        ({"retry-after-ms": "1574", "retry-after": "2"}, 1.574),
        ({"retry-after-ms": "250.5"}, 0.2505),
        ({"retry-after-ms": "garbage", "retry-after": "2"}, 2.0),
    ],
)
@pytest.mark.parametrize("status", [429, 503, 529])
def test_retry_after_is_believed_within_bounds(headers: dict[str, str], seconds: float | None, status: int) -> None:
    assert refused(status, headers).retry_after_s == (None if seconds is None else pytest.approx(seconds))


def test_a_date_is_read_by_the_clock_of_the_backend_that_said_it() -> None:
    their_now = datetime(2031, 5, 5, tzinfo=UTC)  # years ahead of ours
    headers = {"date": format_datetime(their_now), "retry-after": format_datetime(their_now + timedelta(seconds=30))}

    assert refused(503, headers).retry_after_s == 30.0


def test_a_date_without_the_backends_own_is_read_by_our_clock() -> None:
    headers = {"retry-after": format_datetime(datetime.now(UTC) + timedelta(hours=1))}

    asked_s = refused(429, headers).retry_after_s

    assert asked_s is not None
    assert 3000 < asked_s <= 3600


@pytest.mark.parametrize(
    ("body", "seconds"),
    [
        ({"error": {"type": "rate_limit", "message": "slow down", "retry_after": 3}}, 3.0),
        ({"error": {"retry_after": 1.574}}, 1.574),
        ({"error": {"retry_after": "9.816"}}, 9.816),
        ({"error": {"retry_after": 10**9}}, DAY_S),
        ({"error": {"retry_after": True}}, None),
        ({"error": {"retry_after": [3]}}, None),
        ({"error": {"retry_after": float("nan")}}, None),
        ({"error": "rate limited"}, None),
        ([], None),
        ("no JSON" * 20_000, None),
        (None, None),
    ],
    ids=lambda value: str(value)[:50],
)
def test_the_error_in_the_body_may_say_it(body: object, seconds: float | None) -> None:
    assert refused(429, {}, body).retry_after_s == seconds


def test_a_header_is_believed_before_the_body_and_both_before_a_reset() -> None:
    body = {"error": {"retry_after": 5}}
    reset = {"x-ratelimit-reset-requests": "7s"}

    assert refused(429, {"retry-after": "2", **reset}, body).retry_after_s == 2.0
    assert refused(429, reset, body).retry_after_s == 5.0
    assert refused(429, reset).retry_after_s == 7.0


@pytest.mark.parametrize(
    ("written", "seconds"),
    [
        ("1s", 1.0),
        ("6m0s", 360.0),
        ("20ms", 0.02),
        ("1h2m3.5s", 3723.5),
        ("18.642s", 18.642),  # codel #72
        ("1.574s", 1.574),  # openai/codex #88
        ("9.816s", 9.816),  # MetaGPT #523
        ("2m59.56s", 179.56),  # Groq, requests of the day
        ("13.57s", 13.57),  # Groq, tokens of the minute
        ("500us", 0.0005),
        ("1d2h", DAY_S),
        ("42", 42.0),
        ("0.5", 0.5),
        ("0s", None),
        ("-5", None),
        ("5x", None),
        ("s", None),
        ("1s garbage", None),
        ("9" * 400 + "s", None),
        ("", None),
    ],
)
@pytest.mark.parametrize("quota", ["requests", "tokens"])
def test_openais_durations(written: str, seconds: float | None, quota: str) -> None:
    found = refused(429, {f"x-ratelimit-reset-{quota}": written}).retry_after_s

    assert found == (None if seconds is None else pytest.approx(seconds))


def test_a_duration_in_microseconds_as_go_writes_it() -> None:
    assert retry_after.until_reset({"x-ratelimit-reset-tokens": "1s500µs"}) == pytest.approx(1.0005)


def openai(remaining_requests: str | None, remaining_tokens: str | None) -> dict[str, str]:
    remaining = {"x-ratelimit-remaining-requests": remaining_requests, "x-ratelimit-remaining-tokens": remaining_tokens}
    resets = {"x-ratelimit-reset-requests": "120ms", "x-ratelimit-reset-tokens": "6m0s"}
    return resets | {name: value for name, value in remaining.items() if value is not None}


@pytest.mark.parametrize(
    ("remaining_requests", "remaining_tokens", "seconds"),
    [
        ("0", "149984", 0.12),
        ("59", "0", 360.0),
        ("0", "0", 360.0),
        ("-1", "5", 0.12),
        (None, None, 360.0),
        (None, "12", 0.12),
        ("59", None, 360.0),
        ("59", "149984", None),
        ("garbage", "5", 0.12),
    ],
)
def test_only_what_is_used_up_is_waited_for_and_the_longest_of_it(
    remaining_requests: str | None, remaining_tokens: str | None, seconds: float | None
) -> None:
    assert refused(429, openai(remaining_requests, remaining_tokens)).retry_after_s == seconds


def anthropic(**quotas: tuple[str, str]) -> dict[str, str]:
    headers = {"date": DATE}
    for name, (remaining, reset) in quotas.items():
        quota = name.replace("_", "-")
        headers |= {
            f"anthropic-ratelimit-{quota}-limit": "50",
            f"anthropic-ratelimit-{quota}-remaining": remaining,
            f"anthropic-ratelimit-{quota}-reset": reset,
        }
    return headers


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        (anthropic(requests=("0", "2026-11-21T10:00:07Z")), 7.0),
        (anthropic(requests=("3", "2026-11-21T10:00:07Z"), tokens=("0", "2026-11-21T10:00:21Z")), 21.0),
        (
            anthropic(
                requests=("49", "2026-11-21T10:00:01Z"),
                input_tokens=("0", "2026-11-21T10:00:12Z"),
                output_tokens=("0", "2026-11-21T10:00:36+00:00"),
            ),
            36.0,
        ),
        (anthropic(output_tokens=("0", "2026-11-21T12:00:30+02:00")), 30.0),
        (anthropic(tokens=("0", "2026-11-21T09:59:00Z")), None),
        (anthropic(tokens=("0", "2027-11-21T09:59:00Z")), DAY_S),
        (anthropic(tokens=("0", "next week")), None),
        (anthropic(tokens=("12", "2026-11-21T10:00:07Z")), None),
    ],
)
def test_anthropics_moments(headers: dict[str, str], seconds: float | None) -> None:
    assert refused(429, headers).retry_after_s == seconds


@pytest.mark.parametrize("status", [503, 529])
def test_a_quota_that_is_used_up_says_nothing_about_an_overload(status: int) -> None:
    assert refused(status, openai("0", "0")).retry_after_s is None


@pytest.mark.parametrize(
    ("status", "kind", "error_class"),
    [
        (429, "quota", "rate_limited"),
        (503, "capacity", "unavailable"),
        (529, "capacity", "overloaded"),
        (401, "credentials", "credentials_refused"),
        (407, "credentials", "credentials_refused"),
    ],
)
def test_a_refusal_says_of_what_kind_it_is(status: int, kind: str, error_class: str) -> None:
    reply = refused(status, {})

    assert (reply.kind, reply.error_class) == (kind, error_class)
    assert reply.message.startswith(f"HTTP {status}")


NAMES = ["retry-after-ms", "retry-after", "date", "x-ratelimit-reset-tokens", "x-ratelimit-remaining-tokens"]
NAMES += ["anthropic-ratelimit-tokens-reset", "anthropic-ratelimit-tokens-remaining"]
PIECES = ["1", "0", "9" * 30, ".", "-", "+", ":", "s", "ms", "h", "e", " ", ",", "T", "Z", "GMT", "Sat", "Nov", "2026"]
VALUES = st.one_of(st.text(max_size=40), st.lists(st.sampled_from(PIECES), max_size=12).map("".join))


@settings(derandomize=True, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.dictionaries(st.sampled_from(NAMES), VALUES), st.binary(max_size=60))
def test_nothing_that_a_backend_says_raises(headers: dict[str, str], body: bytes) -> None:
    for found in (retry_after.read(headers, body), retry_after.until_reset(headers)):
        assert found is None or 0 <= found <= DAY_S
