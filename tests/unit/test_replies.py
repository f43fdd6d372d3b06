"""What a backend may send back: each is classed, and none takes more memory or time than is stated (design I11)."""

from __future__ import annotations

import json
import time
import tracemalloc
import zlib
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest
from aiohttp import web

from llmqueue.backend import Call, http, sending
from llmqueue.backend.classify import read_error
from llmqueue.backend.health import BackendHealth
from llmqueue.backend.models_backend import Fields, ModelsBackend
from llmqueue.backend.openai import OpenAIBackend
from llmqueue.db.listen import WakeSignal
from llmqueue.fake_backend import SimulatorConfig, running
from llmqueue.types import (
    Answer,
    Grant,
    Json,
    PermanentError,
    Reply,
    Retry,
    Task,
    Throttled,
    TransientError,
    Unreachable,
    Usage,
)
from tests.support.executor import Ends, executor_of
from tests.support.serving import serving

pytestmark = pytest.mark.anyio

CONFIG = SimulatorConfig(instant=True, any_model=True)
Make = Callable[[str], ModelsBackend | OpenAIBackend]
ADAPTERS: dict[str, Make] = {
    "models": lambda url: ModelsBackend(url, None, Fields()),
    "openai": lambda url: OpenAIBackend(url, None),
}


@asynccontextmanager
async def answering(response: Callable[[], web.StreamResponse]) -> AsyncIterator[str]:
    """The URL of a server that answers every POST with what `response()` makes."""

    async def reply(request: web.Request) -> web.StreamResponse:
        await request.read()
        return response()

    async with serving({"/{path:.*}": reply}) as port:
        yield f"http://127.0.0.1:{port}"


async def call(make: Make, url: str, prompt: str = "why?") -> Reply:
    backend = make(url)
    sending.current.set(sending.Sending(time.monotonic() + 60))
    try:
        return await backend.call(Call("m", prompt, None, "1:0", 60.0))
    finally:
        await backend.aclose()


@pytest.mark.parametrize("adapter", ADAPTERS)
@pytest.mark.parametrize(
    ("fault", "error_class"),
    [
        ("unreadable", "unreadable_reply"),
        ("no-answer", "unreadable_reply"),
        ("error-inside", "error_in_reply"),
        ("redirect", "http_307"),
        ("other-key", "reply_of_another"),
        ("bomb", "reply_too_large"),
        ("endless", "reply_too_large"),
        ("reset", "connection_lost"),
        ("500", "http_500"),
        ("502", "http_502"),
    ],
)
async def test_each_broken_reply_has_its_class(adapter: str, fault: str, error_class: str) -> None:
    async with running(CONFIG) as server:
        reply = await call(ADAPTERS[adapter], server.url, f"[[fault:{fault}]]")

    assert isinstance(reply, TransientError)
    assert reply.error_class == error_class
    assert len(reply.message) <= 400
    assert "secret=" not in reply.message


@pytest.mark.parametrize("fault", ["bomb", "endless"])
async def test_a_reply_without_an_end_takes_little_more_memory_than_the_bound(
    fault: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http, "MAX_REPLY_BYTES", 4_000_000)
    async with running(CONFIG) as server:
        await call(ADAPTERS["models"], server.url, f"[[fault:{fault}]]")  # the simulator has made its bomb
        tracemalloc.start()
        try:
            reply = await call(ADAPTERS["models"], server.url, f"[[fault:{fault}]]")
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    assert isinstance(reply, TransientError)
    assert peak < 40_000_000, "the bomb would be 100 MB, the other has no end"


@pytest.mark.parametrize("adapter", ADAPTERS)
async def test_an_answer_of_ten_megabytes_is_an_answer(adapter: str) -> None:
    long = "é" * 5_000_000
    body = {"answer": long, "choices": [{"message": {"content": long}}]}
    async with answering(lambda: web.json_response(body)) as url:
        assert await call(ADAPTERS[adapter], url) == Answer(long, Usage())


async def test_the_bound_is_where_it_is_said_to_be(monkeypatch: pytest.MonkeyPatch) -> None:
    body = json.dumps({"answer": "x" * 1000}).encode()
    async with answering(lambda: web.Response(body=body)) as url:
        monkeypatch.setattr(http, "MAX_REPLY_BYTES", len(body))
        assert isinstance(await call(ADAPTERS["models"], url), Answer)
        monkeypatch.setattr(http, "MAX_REPLY_BYTES", len(body) - 1)
        assert await call(ADAPTERS["models"], url) == TransientError(
            "reply_too_large", f"the reply is larger than {len(body) - 1:,} bytes"
        )


@pytest.mark.parametrize("encoding", ["gzip", "deflate", "raw deflate"])
async def test_a_compressed_reply_is_read_though_it_was_not_asked_for(encoding: str) -> None:
    window_bits = {"gzip": 31, "deflate": 15, "raw deflate": -15}[encoding]
    packer = zlib.compressobj(9, zlib.DEFLATED, window_bits)
    packed = packer.compress(b'{"answer": "42"}') + packer.flush()
    headers = {"Content-Encoding": encoding.removeprefix("raw "), "Content-Type": "application/json"}

    async with answering(lambda: web.Response(body=packed, headers=headers)) as url:
        assert await call(ADAPTERS["models"], url) == Answer("42", Usage())


@pytest.mark.parametrize(
    ("encoding", "body"), [("gzip", b"no gzip"), ("br", b"x"), ("gzip, gzip", b"x"), ("gzip", b"\x1f\x8b")]
)
async def test_what_cannot_be_decoded_is_unreadable(encoding: str, body: bytes) -> None:
    async with answering(lambda: web.Response(body=body, headers={"Content-Encoding": encoding})) as url:
        reply = await call(ADAPTERS["models"], url)

    assert isinstance(reply, TransientError)
    assert reply.error_class == "unreadable_reply"


async def test_of_an_error_of_any_size_only_its_beginning_is_read() -> None:
    async with answering(lambda: web.Response(status=500, body=b"y" * 3_000_000)) as url:
        reply = await call(ADAPTERS["models"], url)

    assert reply == TransientError("http_500", "HTTP 500 " + "y" * 300)


async def test_a_redirect_says_where_to_and_goes_nowhere() -> None:
    async with running(CONFIG) as server:
        reply = await call(ADAPTERS["models"], server.url, "[[fault:redirect]]")
        assert len(server.log.calls()) == 1

    assert reply == TransientError("http_307", "HTTP 307: a redirect to /single, which is not followed")


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ({"answer": "x"}, None),
        ({"error": None}, None),
        ([], None),
        ({"error": "boom"}, TransientError("error_in_reply", "200 with an error inside: boom")),
        ({"error": {"message": "boom"}}, TransientError("error_in_reply", "200 with an error inside: boom")),
        ({"error": {"type": "rate_limited", "message": "no", "retry_after": 7}}, ("quota", 7.0)),
        ({"error": {"type": "overloaded_error", "message": "no"}}, ("capacity", None)),
        ({"error": {"code": 503, "message": "no"}}, ("capacity", None)),
        ({"error": {"code": "rate_limit_exceeded", "message": "no", "retry_after": "x"}}, ("quota", None)),
        (
            {"error": {"code": 502, "message": "bad gateway"}},
            TransientError("http_502", "200 with an error inside: bad gateway"),
        ),
        ({"error": {"code": 400, "message": "bad"}}, PermanentError("http_400", "200 with an error inside: bad")),
        ({"error": {"code": True, "message": 5}}, TransientError("error_in_reply", "200 with an error inside: 5")),
    ],
    ids=str,
)
def test_an_error_inside_a_200_is_somebodys_fault_like_any_other(body: Json, expected: object) -> None:
    reply = read_error(body)

    if isinstance(expected, tuple):
        assert isinstance(reply, Throttled)
        assert (reply.kind, reply.retry_after_s) == expected
    else:
        assert reply == expected


@pytest.mark.parametrize("adapter", ADAPTERS)
async def test_an_answer_with_an_error_beside_it_is_paid_for_and_kept(adapter: str) -> None:
    body = {"answer": "42", "choices": [{"message": {"content": "42"}}], "error": {"message": "quota soon"}}
    async with answering(lambda: web.json_response(body)) as url:
        assert await call(ADAPTERS[adapter], url) == Answer("42", Usage())


@pytest.mark.parametrize("fault", ["hang", "drip"])
async def test_a_call_that_hangs_ends_at_its_timeout_even_after_the_headers(fault: str) -> None:
    async with running(CONFIG) as server:
        backend = ModelsBackend(server.url, None, Fields())
        ends = Ends()
        runner = executor_of(backend, BackendHealth(backend, server.url, WakeSignal()), ends)
        now = time.monotonic()
        await runner.run(Grant("m", Task(1, 1, 1, 5, 0, f"[[fault:{fault}]]", None), now, now + 60, 0.5))
        await backend.aclose()

    decision = ends[0].decision
    assert isinstance(decision, Retry)
    assert (decision.error_class, decision.counts) == ("timeout", True)
    assert ends[0].latency_s is not None


async def test_a_reply_that_is_cut_off_is_a_lost_connection() -> None:
    async def cut(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Length": "1000"})
        await response.prepare(request)
        await response.write(b'{"answer"')
        assert request.transport is not None
        request.transport.abort()
        return response

    async with serving({"/single": cut}) as port:
        reply = await call(ADAPTERS["models"], f"http://127.0.0.1:{port}")

    assert isinstance(reply, TransientError)
    assert reply.error_class == "connection_lost"


async def test_a_server_that_is_gone_is_unreachable_and_not_a_breakdown() -> None:
    async with running(CONFIG) as server:
        url = server.url

    assert isinstance(await call(ADAPTERS["models"], url), Unreachable)


async def test_a_call_goes_out_as_httpx_would_send_it_and_keeps_no_cookie() -> None:
    seen: list[tuple[str, dict[str, str], bytes]] = []

    async def note(request: web.Request) -> web.StreamResponse:
        seen.append((request.path_qs, dict(request.headers), await request.read()))
        return web.json_response({"answer": "42"}, headers={"Set-Cookie": "sticky=1"})

    async with serving({"/{path:.*}": note}) as port:
        url = f"http://127.0.0.1:{port}/v1/"
        backend = ModelsBackend(url, "secret", Fields(single_path="/a b?version=2"))
        for prompt in ("one", "zwölf ☃"):
            sending.current.set(sending.Sending(time.monotonic() + 60))
            assert isinstance(await backend.call(Call("m", prompt, {"n": 1.5}, "1:0", 60.0)), Answer)
        await backend.aclose()
        async with http.client(url, {"Authorization": "Bearer secret"}) as client:
            body = {"model": "m", "prompt": "zwölf ☃", "params": {"n": 1.5}}
            await client.post("/a b?version=2", json=body, headers={"Idempotency-Key": "1:0"})

    assert seen[1] == seen[2]
    assert seen[1][0].startswith("/v1/a%20b?version=2")
    assert seen[0][1]["Authorization"] == "Bearer secret"
    assert "Cookie" not in seen[1][1]


# --- several prompts in one call --------------------------------------------------------------------------------


async def call_batch(url: str, *prompts: str) -> list[Reply]:
    backend = ModelsBackend(url, None, Fields())
    sending.current.set(sending.Sending(time.monotonic() + 60))
    calls = [Call("m", prompt, None, f"{number}:0", 60.0) for number, prompt in enumerate(prompts, start=1)]
    try:
        return list(await backend.call_batch(calls))
    finally:
        await backend.aclose()


async def test_each_prompt_of_a_batch_has_its_own_reply() -> None:
    async with running(CONFIG) as server:
        alone = [await call(ADAPTERS["models"], server.url, prompt) for prompt in ("one", "two")]
        replies = await call_batch(server.url, "one", "[[fault:429]]", "[[fault:400]]", "two")

    assert [replies[0], replies[3]] == alone
    assert isinstance(replies[1], Throttled)
    assert isinstance(replies[2], PermanentError | TransientError)


@pytest.mark.parametrize("status", [429, 502])
async def test_a_batch_that_fails_as_a_whole_has_one_reply_for_all(status: int) -> None:
    async with answering(lambda: web.Response(status=status)) as url:
        replies = await call_batch(url, "one", "two")

    assert isinstance(replies[0], Throttled if status == 429 else TransientError)
    assert replies[1] is replies[0]


async def test_results_are_told_apart_by_their_ids_and_not_by_their_order() -> None:
    results = [
        {"id": "3:0", "answer": "three"},
        {"id": "9:0", "answer": "of nobody"},
        "no result",
        {"answer": "without an id"},
        {"id": ["1:0"], "answer": "a list"},
        {"id": "1:0", "error": {"type": "overloaded", "message": "later", "retry_after": 4}},
    ]
    async with answering(lambda: web.json_response({"results": results})) as url:
        first, second, third = await call_batch(url, "one", "two", "three")

    assert isinstance(first, Throttled)
    assert (first.kind, first.retry_after_s) == ("capacity", 4)
    assert isinstance(second, TransientError)
    assert second.error_class == "no_result"
    assert third == Answer("three", Usage())


@pytest.mark.parametrize(
    ("body", "error_class"),
    [
        (b"<html>", "unreadable_reply"),
        (b"[]", "unreadable_reply"),
        (b'{"results": {}}', "unreadable_reply"),
        (b'{"error": {"message": "no"}}', "error_in_reply"),
    ],
)
async def test_a_reply_without_results_is_one_failure(body: bytes, error_class: str) -> None:
    async with answering(lambda: web.Response(body=body, content_type="application/json")) as url:
        first, second = await call_batch(url, "one", "two")

    assert isinstance(first, TransientError)
    assert first.error_class == error_class
    assert second is first
