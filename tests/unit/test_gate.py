"""gate.Gate: how many calls may go out, and what it takes a reply for."""

from __future__ import annotations

import time
from typing import cast

import anyio
import pytest

from llmqueue import gate as gate_module
from llmqueue.backend import Backend
from llmqueue.circuit import HALF, WINDOW
from llmqueue.gate import Gate, probe
from llmqueue.models import Answer, Breakdown, Grant, Late, Refusal, Rejection, Reply, Task, Unreachable, Usage
from llmqueue.wakeup import Bell

ANSWER = Answer("42", Usage())
BROKEN = Breakdown("http_502", "Bad Gateway")


def judge(gate: Gate, *replies: Reply) -> list[str]:
    now = time.monotonic()
    grants = [Grant("m", Task(n, n, 1, 5, 0, "why?", None), now, now + 60, 600.0) for n in range(len(replies))]
    return [gate.judge(grant, reply) for grant, reply in zip(grants, replies, strict=True)]


@pytest.fixture
def gate() -> Gate:
    gate = Gate(cast(Backend, None), "http://backend", Bell())
    gate.is_open = True
    return gate


def test_ten_failures_close_it_and_it_says_what_is_wrong_without_a_word_of_the_backends(gate: Gate) -> None:
    assert judge(gate, *[BROKEN] * HALF) == ["attempt"] * (HALF - 1) + ["backend"]

    assert gate.at_most(200) == 0
    assert gate.trouble is not None
    assert gate.trouble.what == "fails its calls: half of the last 20, the last with http_502"


@pytest.mark.parametrize(
    "reply",
    [
        ANSWER,
        Rejection("http_400", "bad"),
        Breakdown("unreadable_reply", "200 without JSON"),
        Breakdown("reply_too_large", "large"),
    ],
    ids=str,
)
def test_whatever_else_the_backend_says_shows_that_it_is_there(gate: Gate, reply: Reply) -> None:
    for _ in range(WINDOW):
        assert judge(gate, reply, reply, BROKEN) == ["attempt"] * 3

    assert gate.at_most(200) == 200


@pytest.mark.parametrize("reply", [Late(), Refusal("capacity", "unavailable", "503", None), Breakdown("timeout", "")])
def test_what_says_nothing_about_the_backend_neither_opens_nor_hides_it(gate: Gate, reply: Reply) -> None:
    judge(gate, *[BROKEN] * (HALF - 1))
    judge(gate, *[reply] * 100)

    assert gate.at_most(200) == 200
    assert judge(gate, BROKEN) == ["backend"]


def test_no_connection_closes_it_at_once_and_is_nobodys_failure(gate: Gate) -> None:
    assert judge(gate, Unreachable("connection refused")) == ["attempt"]

    assert gate.at_most(200) == 0


class Hanging:
    """An adapter that never says whether it can reach its backend."""

    async def probe(self) -> str | None:
        await anyio.sleep_forever()
        return None


@pytest.mark.anyio
async def test_a_probe_that_hangs_is_a_reason_like_any_other(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gate_module, "PROBE_TIMEOUT_S", 0.01)

    with anyio.fail_after(20):
        reason = await probe(cast(Backend, Hanging()))

    assert reason is not None
    assert "did not end" in reason
