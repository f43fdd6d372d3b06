"""The adapter of the measured workers: llmqueue's own, in a process with faults.

Every 20 to 40 s the event loop stalls for a second, as during a long garbage collection or on an overloaded machine.
When the file FREEZE appears, the process stops itself (SIGSTOP) before it sends a call of the model that the file
names, while it holds the grants of that claim, until it gets a SIGCONT.
"""

from __future__ import annotations

import asyncio
import os
import random
import signal
import time
from pathlib import Path

from llmqueue.backend import Backend, Call
from llmqueue.backend.models_backend import Fields, ModelsBackend
from llmqueue.types import Reply

FREEZE = "BENCH_FREEZE"  # the environment variable that names the file
STALL_S = 1.0
STALL_EVERY_S = (20.0, 40.0)
STALLED = "stalled"  # a line of the output for each


class StallingBackend:
    """Calls like the backend that it wraps, but sometimes late."""

    def __init__(self, backend: Backend, freeze: Path) -> None:
        self._backend = backend
        self._freeze = freeze
        self._is_planned = False

    async def call(self, call: Call) -> Reply:
        if not self._is_planned:
            self._is_planned = True
            self._plan()
        if self._freeze.exists() and self._freeze.read_text() == call.model:
            self._freeze.unlink()
            os.kill(os.getpid(), signal.SIGSTOP)
        return await self._backend.call(call)

    async def probe(self) -> str | None:
        return await self._backend.probe()

    async def aclose(self) -> None:
        await self._backend.aclose()

    def _plan(self) -> None:
        asyncio.get_running_loop().call_later(random.uniform(*STALL_EVERY_S), self._stall)

    def _stall(self) -> None:
        time.sleep(STALL_S)
        print(STALLED, flush=True)
        self._plan()


def factory(base_url: str, secret: str | None) -> StallingBackend:
    return StallingBackend(ModelsBackend(base_url, secret, Fields()), Path(os.environ[FREEZE]))
