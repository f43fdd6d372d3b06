"""Arbitrary HTTP replies, through adapter and attempt: each call is settled exactly once.

The server writes raw bytes and then closes the connection, sometimes after a moment of silence. The attempt must not
raise, exceed its deadline, or complete with an answer that cannot be stored. The number of calls that end only by their
deadline is reported, because a closed connection should be noticed at once.
"""

from __future__ import annotations

import asyncio
import functools
import gzip
import json
import time
from random import Random
from typing import Any
from unittest.mock import patch

import httpx

from bench.fuzz import nonsense
from bench.fuzz.hunt import Case, Failed
from llmqueue.backend import Backend
from llmqueue.backend.health import BackendHealth
from llmqueue.backend.models_backend import Fields, ModelsBackend
from llmqueue.backend.openai import OpenAIBackend
from llmqueue.db.encoding import why_unstorable
from llmqueue.db.listen import WakeSignal
from llmqueue.types import Complete, Decision, Grant, Settlement, Task
from tests.support.executor import Ends, executor_of

DEADLINE_S = 3.0  # of the call: longer than the server is silent
SILENT_S = 0.05
STATUSES = (
    200,
    200,
    200,
    200,
    200,
    201,
    204,
    206,
    301,
    302,
    400,
    401,
    404,
    408,
    413,
    418,
    429,
    500,
    502,
    503,
    504,
    529,
)
GOOD = {
    "models": b'{"answer":"because","usage":{"prompt_tokens":3,"completion_tokens":5}}',
    "openai": b'{"choices":[{"message":{"content":"because"}}],"usage":{"prompt_tokens":3,"completion_tokens":5}}',
}
HEADERS = (
    b"Retry-After: %s",
    b"retry-after-ms: %s",
    b"x-ratelimit-reset-tokens: %s\r\nx-ratelimit-remaining-tokens: 0",
    b"anthropic-ratelimit-tokens-reset: %s",
    b"Date: %s",
    b"Content-Type: %s",
    b"Content-Encoding: gzip",
    b"Content-Encoding: deflate",
    b"Content-Encoding: br",
    b"Content-Encoding: zstd",
    b"Set-Cookie: %s",
    b"Location: %s",
    b"X-Long: " + b"x" * 100_000,
    b"X-Longer: " + b"x" * 1_000_000,
    b"\xff\xfe: \x00",
    b": no name",
    b"no colon",
    b" folded",
)
VALUES = (
    b"",
    b"5",
    b"-5",
    b"1e400",
    b"nan",
    b"9" * 5000,
    b"Wed, 21 Oct 2099 07:28:00 GMT",
    b"Wed, 99 Foo 99999 07:28:00 GMT",
    b"2030-01-01T00:00:00Z",
    b"1h2m3.5s",
    b"text/html; charset=\xff",
    b"application/json; charset=utf-7",
    b"\x00\x01",
    b"\xc2\xb5s",
)


_ssl_context = functools.cache(httpx.create_ssl_context)


class Replies:
    """The pieces of a case are written by the server, one after the other."""

    name = "replies"

    def __init__(self) -> None:
        self._by_deadline = 0

    def make(self, rng: Random) -> Case:
        adapter = rng.choice(tuple(GOOD))
        body = self._body(rng, adapter)
        status = rng.choice(STATUSES)
        line = b"HTTP/1.1 %d %s" % (status, rng.choice((b"OK", b"OK", b"", b"R\xe9ussi", b"\xff", b"x" * 10_000)))
        if rng.random() < 0.08:
            line = nonsense.mutated(line, rng)
        headers = [
            header.replace(b"%s", rng.choice(VALUES)) for header in rng.sample(HEADERS, rng.choice((0, 0, 1, 1, 2, 3)))
        ]
        if any(header.endswith(b"gzip") for header in headers) and rng.random() < 0.6:
            body = gzip.compress(body)
            body = nonsense.mutated(body, rng, 1) if rng.random() < 0.5 else body
        body = self._framed(rng, headers, body)
        pieces = [line + b"\r\n", *(header + b"\r\n" for header in headers), b"\r\n", body]
        if rng.random() < 0.08:
            pieces = [nonsense.mutated(b"".join(pieces), rng)]
        if rng.random() < 0.05:
            pieces.insert(0, rng.choice((b"\r\n", b"HTTP/1.1 100 Continue\r\n\r\n", b"\0" * 100, rng.randbytes(50))))
        return Case(pieces, {"adapter": adapter, "end": rng.choice(("close", "close", "close", "silent"))})

    def _body(self, rng: Random, adapter: str) -> bytes:
        draw = rng.random()
        if draw < 0.3:
            return nonsense.mutated(GOOD[adapter], rng)
        if draw < 0.45:
            return GOOD[adapter].replace(b'"because"', rng.choice(nonsense.JSON))
        if draw < 0.6:
            return GOOD[adapter].replace(rng.choice((b"3", b"5")), rng.choice(nonsense.JSON))
        if draw < 0.7:
            return rng.choice(nonsense.JSON)
        if draw < 0.78:
            error = {"type": rng.choice(nonsense.TEXTS), "message": rng.choice(nonsense.TEXTS), "retry_after": "?"}
            return json.dumps({"error": error}).encode().replace(b'"?"', rng.choice(nonsense.JSON))
        if draw < 0.83:
            return rng.randbytes(rng.randrange(2000))
        return GOOD[adapter]

    def _framed(self, rng: Random, headers: list[bytes], body: bytes) -> bytes:
        draw = rng.random()
        if draw < 0.55:
            headers.append(b"Content-Length: %d" % len(body))
        elif draw < 0.65:
            wrong = (b"0", b"-1", b"1e3", b"99999999999999999999", b"%d" % (len(body) + 7), b"%d" % (len(body) // 2))
            headers.append(b"Content-Length: " + rng.choice(wrong))
        elif draw < 0.9:
            headers.append(b"Transfer-Encoding: " + rng.choice((b"chunked", b"chunked", b"chunked", b"gzip, chunked")))
            size = rng.choice(
                (b"%x" % len(body), b"%x" % len(body), b"-1", b"g", b"", b"f" * 30, b"%x" % (len(body) + 3))
            )
            body = size + b"\r\n" + body + b"\r\n" + rng.choice((b"0\r\n\r\n", b"0\r\nX: y\r\n\r\n", b"", b"zz\r\n"))
        return body  # otherwise it ends with the connection

    def note(self) -> str:
        return f"{self._by_deadline} calls ended by their deadline"

    def check(self, case: Case) -> None:
        decision = self.decision(case)
        error_class = getattr(decision, "error_class", None)
        if error_class == "adapter_raised":
            raise Failed(f"the adapter raised: {decision}")
        self._by_deadline += error_class == "timeout"
        if isinstance(decision, Complete):
            _judge(decision)

    def decision(self, case: Case) -> Decision:
        """Returns the decision about a task whose call gets this reply."""
        raised: list[str] = []
        # a new SSL context takes 0.1 s per client, and is not under test here
        with patch.object(httpx, "create_ssl_context", _ssl_context):
            ends = asyncio.run(_call(case, raised))
        if raised:
            raise Failed(f"raised beside the call: {raised[0]}")
        if len(ends) != 1:
            raise Failed(f"settled {len(ends)} times")
        return ends[0].decision


def _judge(decision: Complete) -> None:
    if why_unstorable(decision.answer) is not None:
        raise Failed(f"would complete with {str(decision.answer)[:100]!r}")
    for count in (decision.usage.input_tokens, decision.usage.output_tokens):
        if count is not None and not (type(count) is int and 0 <= count < 2**31):
            raise Failed(f"a usage of {count!r}")


async def _call(case: Case, raised: list[str]) -> list[Settlement]:
    """Makes one attempt, as a worker does, against a server that writes the pieces."""

    def note(_: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        raised.append(f"{context['message']}: {context.get('exception')!r}")

    asyncio.get_running_loop().set_exception_handler(note)
    serving: set[asyncio.Task[None] | None] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        serving.add(asyncio.current_task())
        try:
            await reader.readuntil(b"\r\n\r\n")
            for piece in case.pieces:
                writer.write(piece)
                await writer.drain()
            if case.about["end"] == "silent":
                await asyncio.sleep(SILENT_S)
        except (OSError, asyncio.IncompleteReadError):
            pass  # the client has left
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0, limit=2**20)
    url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    is_openai = case.about["adapter"] == "openai"
    backend: Backend = OpenAIBackend(url, None) if is_openai else ModelsBackend(url, None, Fields())
    ends = Ends()
    runner = executor_of(backend, BackendHealth(backend, url, WakeSignal()), ends)
    now = time.monotonic()
    await runner.run(Grant("m", Task(1, 1, 1, 5, 0, "why?", None), now, now + 60, DEADLINE_S))
    await backend.aclose()
    server.close()
    await asyncio.wait([task for task in serving if task is not None] or [asyncio.ensure_future(asyncio.sleep(0))])
    return ends
