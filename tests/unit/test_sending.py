"""A late grant sends nothing: the check is made with the connection in hand, before the first byte (design I3)."""

from __future__ import annotations

import time

import httpx
import pytest

from llmqueue.backend import Call, sending
from llmqueue.backend.health import BackendHealth
from llmqueue.backend.http import header_key, why
from llmqueue.backend.models_backend import Fields, ModelsBackend
from llmqueue.db.listen import WakeSignal
from llmqueue.fake_backend import SimulatorConfig, running
from llmqueue.types import Answer, Grant, Late, Release, Task, Unreachable
from tests.support.executor import Ends, executor_of

pytestmark = pytest.mark.anyio

CALL = Call("m", "why?", None, "1:0", 5.0)
CONFIG = SimulatorConfig(instant=True, any_model=True)


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


async def no_top_up(fence: int, input_charge: int) -> bool:
    raise AssertionError("nothing is to be topped up here")


async def test_a_grant_that_ran_out_while_connecting_sends_nothing_and_keeps_the_connection() -> None:
    async with running(CONFIG) as server:
        backend = ModelsBackend(server.url, None, Fields())
        noted = sending.Sending(send_before=time.monotonic() - 0.001)
        sending.current.set(noted)

        late = await backend.call(CALL)

        assert late == Late()
        assert noted.sent_at is None
        assert server.log.calls() == []
        sending.current.set(sending.Sending(send_before=time.monotonic() + 60))
        assert isinstance(await backend.call(CALL), Answer)
        assert len(server.log.calls()) == 1
        await backend.aclose()


async def test_the_first_call_reads_no_certificates_while_its_grant_runs_out(monkeypatch: pytest.MonkeyPatch) -> None:
    async with running(CONFIG) as server:
        backend = ModelsBackend(server.url, None, Fields())
        read: list[object] = []
        monkeypatch.setattr(httpx, "create_ssl_context", lambda *args, **kwargs: read.append(args))
        sending.current.set(sending.Sending(send_before=time.monotonic() + 60))

        assert isinstance(await backend.call(CALL), Answer)
        assert read == []
        await backend.aclose()


async def test_a_refused_connection_is_the_backends_fault_and_was_not_sent() -> None:
    async with running(CONFIG) as server:
        url = server.url
    backend = ModelsBackend(url, None, Fields())
    noted = sending.Sending(send_before=time.monotonic() + 60)
    sending.current.set(noted)

    reply = await backend.call(CALL)

    assert isinstance(reply, Unreachable)
    assert reply.message.endswith("connection refused")
    assert noted.sent_at is None
    await backend.aclose()


async def test_a_thawed_worker_gives_its_old_grants_back_unsent() -> None:
    async with running(CONFIG) as server:
        backend = ModelsBackend(server.url, None, Fields())
        ends = Ends()
        runner = executor_of(backend, BackendHealth(backend, server.url, WakeSignal()), ends)
        frozen_for_s = 30.0
        granted_at = time.monotonic() - frozen_for_s
        task = Task(1, 1, 1, 5, 0, "why?", None)

        await runner.run(Grant("m", task, granted_at, granted_at + 0.25, 600.0))

        assert [end.decision for end in ends] == [Release("late_grant")]
        assert ends[0].sent_after_s is None
        assert server.log.calls() == []
        await backend.aclose()


@pytest.mark.parametrize(
    ("key", "header"),
    [("42:0", "42:0"), ("Straße:1", "Stra%C3%9Fe:1"), ("a\nb:0", "a%0Ab:0"), ("100%:0", "100%25:0")],
)
def test_a_key_fits_into_a_header_and_stays_itself(key: str, header: str) -> None:
    assert header_key(key) == header


def test_a_very_long_key_is_hashed() -> None:
    assert len(header_key("k" * 9000 + ":0")) == 64
    assert header_key("k" * 9000 + ":0") != header_key("k" * 9000 + ":1")


def test_an_unknown_error_is_named_by_its_class() -> None:
    assert why(ValueError("x")) == "ValueError: x"
