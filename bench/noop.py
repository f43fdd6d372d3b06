"""A backend that answers at once in the worker's own process, so that only the queue is measured.

LLMQUEUE_BACKEND=bench.noop:backend, or bench.noop:waits: if a prompt is a time, that one appends the seconds since then
to the file BENCH_WAITS.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TextIO

from llmqueue.backend import Call, sending
from llmqueue.types import Answer, Reply, Usage

ANSWER = Answer("42", Usage(1, 1))


class Noop:
    """Answers at once; the grant is checked as in any call."""

    async def call(self, _call: Call) -> Reply:
        sending.send_now()
        return ANSWER

    async def call_batch(self, calls: Sequence[Call]) -> Sequence[Reply]:
        sending.send_now()
        return [ANSWER] * len(calls)

    async def probe(self) -> str | None:
        return None

    async def aclose(self) -> None:
        return None


def backend(_base_url: str, _secret: str | None) -> Noop:
    return Noop()


class Waits(Noop):
    def __init__(self, file: TextIO) -> None:
        self._file = file

    async def call(self, call: Call) -> Reply:
        with suppress(ValueError):
            self._file.write(f"{time.time() - float(str(call.prompt))}\n")
        return await super().call(call)

    async def call_batch(self, calls: Sequence[Call]) -> Sequence[Reply]:
        return [await self.call(call) for call in calls]


def waits(_base_url: str, _secret: str | None) -> Waits:
    return Waits(Path(os.environ["BENCH_WAITS"]).open("a", buffering=1))
