"""An adapter that measures the worker's event loop: it appends the delay of each timer to the file BENCH_LAG."""

from __future__ import annotations

import asyncio
import os
import time
from pathlib import Path

from llmqueue.backend.models_backend import Fields, ModelsBackend

EVERY_S = 0.1
LAG = "BENCH_LAG"


class LaggingBackend(ModelsBackend):
    """A ModelsBackend that starts the measurement with its first probe."""

    _watch: asyncio.Task[None] | None = None

    async def probe(self) -> str | None:
        if self._watch is None:
            self._watch = asyncio.create_task(_watch(Path(os.environ[LAG])))
        return await super().probe()


async def _watch(file: Path) -> None:
    with file.open("a", buffering=1) as lags:
        while True:
            due_at = time.monotonic() + EVERY_S
            await asyncio.sleep(EVERY_S)
            lags.write(f"{time.monotonic() - due_at}\n")


def backend(base_url: str, secret: str | None) -> LaggingBackend:
    return LaggingBackend(base_url, secret, Fields())
