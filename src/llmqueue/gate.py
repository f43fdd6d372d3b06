"""Whether the backend can be reached. Closed by the first call that finds no connection, opened by a probe.

Nothing is claimed while it is closed, so an outage is one line in the log and not one per task (design I11).
"""

from __future__ import annotations

import random
import time

import anyio

from llmqueue.backend import Backend
from llmqueue.logs import Event, logger
from llmqueue.wakeup import Bell

PROBE_S = (0.25, 10.0)
# Open for that long without a refused connection: the next outage is a new one.
STEADY_S = 10.0


class Gate:
    """`is_open` says whether claiming makes sense; the bell rings when that becomes true."""

    def __init__(self, backend: Backend, url: str, bell: Bell) -> None:
        self._backend = backend
        self._url = url
        self._bell = bell
        self._closed = anyio.Event()
        self.is_open = False

    def close(self) -> None:
        if self.is_open:
            self.is_open = False
            self._closed.set()

    async def run(self) -> None:
        """Probes while closed, sleeps while open. Never returns."""
        pause_s = PROBE_S[0]
        while True:
            reason = await probe(self._backend)
            if reason is not None:
                await self._until_reachable(reason)
            opened_at = time.monotonic()
            self._closed = anyio.Event()
            self.is_open = True
            self._bell.ring("config")
            await self._closed.wait()
            # A backend that takes the probe and refuses the calls: opened ever more slowly, or it would be a storm.
            pause_s = PROBE_S[0] if time.monotonic() - opened_at > STEADY_S else min(2 * pause_s, PROBE_S[1])
            await anyio.sleep(random.uniform(pause_s / 2, pause_s))

    async def _until_reachable(self, reason: str) -> None:
        logger().error(
            Event.BACKEND_UNREACHABLE, url=self._url, error=reason, effect="nothing is claimed until it answers"
        )
        pause_s = PROBE_S[0]
        while await probe(self._backend) is not None:
            await anyio.sleep(random.uniform(pause_s / 2, pause_s))
            pause_s = min(pause_s * 2, PROBE_S[1])
        logger().info(Event.BACKEND_BACK, url=self._url)


async def probe(backend: Backend) -> str | None:
    """Returns None when the backend can be reached, else why not, whatever the adapter raises."""
    try:
        return await backend.probe()
    except Exception as error:  # noqa: BLE001 - an adapter's bug must not end the worker; it is shown as the reason
        return f"{type(error).__name__}: {error}"
