"""Calls without a queue, over the adapters' own HTTP client:

    python -m bench.bare URL PATH IN_FLIGHT SECONDS BODY_JSON [straight]

Prints replies per second. `straight` calls the transport directly, as the adapters do, without the layers of httpx
above it.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import Awaitable, Callable

import httpx

from llmqueue.backend.http import Client, client, post

# The client has no timeout of its own, and a server that hangs must not block the loop.
GRACE_S = 60.0

Send = Callable[[Client, str, object], Awaitable[None]]


async def main(url: str, path: str, in_flight: int, seconds: float, body: object, *, is_straight: bool) -> float:
    send = _post_straight if is_straight else _post
    async with client(url, {}) as http, asyncio.timeout(seconds + GRACE_S):
        await send(http, path, body)  # not counted: a server may load modules with its first request
        begun = time.monotonic()
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(_until(begun + seconds, send, http, path, body)) for _ in range(in_flight)]
        # Until the last reply, because the calls in flight at the end cost the server time too.
        return sum(task.result() for task in tasks) / (time.monotonic() - begun)


async def _until(end: float, send: Send, http: Client, path: str, body: object) -> int:
    replies = 0
    while time.monotonic() < end:
        await send(http, path, body)
        replies += 1
    return replies


async def _post_straight(http: Client, path: str, body: object) -> None:
    reply = await post(http, path, body, "bare")
    if not isinstance(reply, httpx.Response):
        raise RuntimeError(str(reply))


async def _post(http: Client, path: str, body: object) -> None:
    response = await http.post(path, json=body)
    if response.status_code != httpx.codes.OK:
        raise RuntimeError(f"HTTP {response.status_code} {response.text[:300]}")


if __name__ == "__main__":
    _, url, path, in_flight, seconds, body, *how = sys.argv
    rate = asyncio.run(
        main(url, path, int(in_flight), float(seconds), json.loads(body), is_straight=how == ["straight"])
    )
    print(f"{rate:.1f}")
