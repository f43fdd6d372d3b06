"""A Models Backend whose calls end when the test releases them; it records the key of each call that arrives."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from aiohttp import web


class HeldBackend:
    """Runs in its own thread. `calls` are Idempotency-Keys in the order of arrival."""

    def __init__(self) -> None:
        self.url = ""
        self.calls: list[str] = []
        self._loop = asyncio.new_event_loop()
        self._may_end = asyncio.Semaphore(0)

    def release(self, how_many: int) -> None:
        """Ends `how_many` calls, the oldest first."""

        def end() -> None:
            for _ in range(how_many):
                self._may_end.release()

        self._loop.call_soon_threadsafe(end)

    async def _single(self, request: web.Request) -> web.StreamResponse:
        prompt = (await request.json())["prompt"]
        self.calls.append(request.headers["Idempotency-Key"])
        await self._may_end.acquire()
        return web.json_response({"answer": answer_to(prompt), "usage": {"prompt_tokens": 3, "completion_tokens": 4}})

    async def _start(self) -> web.AppRunner:
        app = web.Application()
        app.router.add_post("/single", self._single)
        runner = web.AppRunner(app, shutdown_timeout=0.1)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        self.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
        return runner


def answer_to(prompt: str) -> str:
    """Returns the backend's answer; the answer to a prompt `large …` is long."""
    return f"secret answer to {prompt}" + " word" * (20_000 if prompt.startswith("large") else 0)


@contextmanager
def held_backend() -> Iterator[HeldBackend]:
    backend = HeldBackend()
    loop = backend._loop
    runner = loop.run_until_complete(backend._start())
    thread = threading.Thread(target=loop.run_forever, name="held-backend")
    thread.start()
    try:
        yield backend
    finally:
        asyncio.run_coroutine_threadsafe(runner.cleanup(), loop).result(30)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(30)
        loop.close()
