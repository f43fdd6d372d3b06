"""Calls without a queue, over the adapters' own HTTP client: python -m bench.bare URL PATH IN_FLIGHT SECONDS BODY_JSON

Prints replies per second.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time

import httpx

from llmqueue.backend.http import client

# The client has no limit of its own: a server that hangs must not hang us.
GRACE_S = 60.0


async def main(url: str, path: str, in_flight: int, seconds: float, body: object) -> float:
    async with client(url, {}) as http, asyncio.timeout(seconds + GRACE_S):
        await _post(http, path, body)  # not counted: a server may load what it needs with its first request
        begun = time.monotonic()
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(_post_until(begun + seconds, http, path, body)) for _ in range(in_flight)]
        # To the last reply: the calls that were in flight at the end have cost the server their time too.
        return sum(task.result() for task in tasks) / (time.monotonic() - begun)


async def _post_until(end: float, http: httpx.AsyncClient, path: str, body: object) -> int:
    replies = 0
    while time.monotonic() < end:
        await _post(http, path, body)
        replies += 1
    return replies


async def _post(http: httpx.AsyncClient, path: str, body: object) -> None:
    response = await http.post(path, json=body)
    if response.status_code != httpx.codes.OK:
        raise RuntimeError(f"HTTP {response.status_code} {response.text[:300]}")


if __name__ == "__main__":
    _, url, path, in_flight, seconds, body = sys.argv
    print(f"{asyncio.run(main(url, path, int(in_flight), float(seconds), json.loads(body))):.1f}")
