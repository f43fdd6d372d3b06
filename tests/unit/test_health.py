"""health.BackendHealth: how many calls may go out, and what it takes a reply for."""

from __future__ import annotations

import time
from typing import cast

import anyio
import pytest

from llmqueue.backend import Backend
from llmqueue.backend import health as health_module
from llmqueue.backend.circuit_breaker import HALF, WINDOW
from llmqueue.backend.classify import Blame
from llmqueue.backend.health import BackendHealth, probe
from llmqueue.db.listen import WakeSignal
from llmqueue.types import (
    Answer,
    Grant,
    Late,
    PermanentError,
    Reply,
    Task,
    Throttled,
    TransientError,
    Unreachable,
    Usage,
)

ANSWER = Answer("42", Usage())
BROKEN = TransientError("http_502", "Bad Gateway")


def judge(health: BackendHealth, *replies: Reply) -> list[Blame | None]:
    now = time.monotonic()
    grants = [Grant("m", Task(n, n, 1, 5, 0, "why?", None), now, now + 60, 600.0) for n in range(len(replies))]
    return [blame for grant, reply in zip(grants, replies, strict=True) for blame in health.judge([grant], [reply])]


@pytest.fixture
def health() -> BackendHealth:
    health = BackendHealth(cast(Backend, None), "http://backend", WakeSignal())
    health.is_reachable = True
    return health


def test_ten_failures_close_it_and_it_says_what_is_wrong_without_a_word_of_the_backends(health: BackendHealth) -> None:
    assert judge(health, *[BROKEN] * HALF) == ["attempt"] * (HALF - 1) + ["backend"]

    assert health.at_most(200) == 0
    assert health.trouble is not None
    assert health.trouble.what == "fails its calls: half of the last 20, the last with http_502"


@pytest.mark.parametrize(
    ("reply", "blame"),
    [
        (ANSWER, None),
        (PermanentError("http_400", "bad"), "task"),
        (TransientError("unreadable_reply", "200 without JSON"), "attempt"),
        (TransientError("reply_too_large", "large"), "attempt"),
    ],
    ids=str,
)
def test_whatever_else_the_backend_says_shows_that_it_is_there(
    health: BackendHealth, reply: Reply, blame: Blame | None
) -> None:
    for _ in range(WINDOW):
        assert judge(health, reply, reply, BROKEN) == [blame, blame, "attempt"]

    assert health.at_most(200) == 200


@pytest.mark.parametrize(
    "reply", [Late(), Throttled("capacity", "unavailable", "503", None), TransientError("timeout", "")]
)
def test_what_says_nothing_about_the_backend_neither_opens_nor_hides_it(health: BackendHealth, reply: Reply) -> None:
    judge(health, *[BROKEN] * (HALF - 1))
    judge(health, *[reply] * 100)

    assert health.at_most(200) == 200
    assert judge(health, BROKEN) == ["backend"]


def test_no_connection_ends_the_claims_at_once_and_is_the_backends_fault(health: BackendHealth) -> None:
    assert judge(health, Unreachable("connection refused")) == ["backend"]

    assert health.at_most(200) == 0


class Hanging:
    """An adapter that never says whether it can reach its backend."""

    async def probe(self) -> str | None:
        await anyio.sleep_forever()
        return None


@pytest.mark.anyio
async def test_a_probe_that_hangs_is_a_reason_like_any_other(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(health_module, "PROBE_TIMEOUT_S", 0.01)

    with anyio.fail_after(20):
        reason = await probe(cast(Backend, Hanging()))

    assert reason is not None
    assert "did not end" in reason
