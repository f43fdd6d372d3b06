"""Wake-up signals: LISTEN on a separate connection. The poll is the truth, a signal ends a wait early (design I16)."""

from __future__ import annotations

import random
import time
from uuid import UUID

import anyio
import anyio.lowlevel
import psycopg
from psycopg import sql

from llmqueue.db import connect
from llmqueue.logs import Event, logger

CHANNEL = "llmqueue"
RECONNECT_S = (0.2, 10.0)


class WakeSignal:
    """Collects the reasons to end a wait early since the last consume(): `task`, `hot`, `config` and others.

    `can_listen` tells whether a NOTIFY can arrive; through a pooler it cannot.
    """

    def __init__(self, *, can_listen: bool = True) -> None:
        self.can_listen = can_listen
        self._event = anyio.Event()
        self._reasons: set[str] = set()

    def set(self, reason: str) -> None:
        self._reasons.add(reason)
        self._event.set()

    @property
    def is_set(self) -> bool:
        """Whether there is a reason since the last consume()."""
        return bool(self._reasons)

    def consume(self) -> frozenset[str]:
        """Returns the reasons and clears them. Call it before you look for work: after it, a signal would be lost."""
        reasons = frozenset(self._reasons)
        self._reasons.clear()
        self._event = anyio.Event()
        return reasons

    async def wait(self, timeout_s: float) -> None:
        if timeout_s <= 0:
            await anyio.lowlevel.checkpoint()
            return
        with anyio.move_on_after(timeout_s):
            await self._event.wait()


class Listener:
    """Listens to the fleet's channel and to the worker's own channel, which each of its heartbeats notifies.

    If no heartbeat arrives within `deaf_after_s`, the connection is dead, even a half-open one that never raises.
    """

    def __init__(self, dsn: str, worker: UUID, wake: WakeSignal, silent_after_s: float) -> None:
        self._dsn = dsn
        self._own_channel = f"llmqueue_{worker.hex}"
        self._wake = wake
        self._silent_after_s = silent_after_s
        self._is_lost = False

    async def run(self) -> None:
        """Runs until it is cancelled. It raises no database error; without a connection only the poll is left."""
        pause_s = RECONNECT_S[0]
        while True:
            started_at = time.monotonic()
            try:
                await self._listen()
            except (psycopg.Error, OSError, TimeoutError) as error:
                self._lost(error)
            pause_s = (
                RECONNECT_S[0] if time.monotonic() - started_at > RECONNECT_S[1] else min(pause_s * 2, RECONNECT_S[1])
            )
            await anyio.sleep(random.uniform(pause_s / 2, pause_s))

    async def _listen(self) -> None:
        with anyio.fail_after(10):
            connection = await psycopg.AsyncConnection.connect(
                connect.with_keepalives(self._dsn, "llmqueue listener"), autocommit=True
            )
        async with connection:
            with anyio.fail_after(10):
                for channel in (CHANNEL, self._own_channel):
                    await connection.execute(sql.SQL("listen {}").format(sql.Identifier(channel)))
            # tasks may have been inserted while there was no listener
            self._wake.set("task")
            self._wake.set("hot")
            heard = 0
            while True:
                before = heard
                async for notify in connection.notifies(timeout=self._silent_after_s, stop_after=1):
                    heard += 1
                    if heard > 1:
                        self._found()  # not after one: through a transaction pooler a single NOTIFY arrives by chance
                    if notify.channel == CHANNEL:
                        self._wake.set(notify.payload or "task")
                if heard == before:
                    raise TimeoutError(
                        f"no heartbeat arrived for {self._silent_after_s:.0f} s: half-open, or through a pooler"
                    )

    def _lost(self, error: Exception) -> None:
        if not self._is_lost:
            logger().warning(Event.LISTENER_LOST, error=_why(error, self._dsn), effect="polling every second")
        self._is_lost = True

    def _found(self) -> None:
        if self._is_lost:
            logger().info(Event.LISTENER_BACK)
        self._is_lost = False


def _why(error: Exception, dsn: str) -> str:
    return str(connect.classify(error, dsn)) if isinstance(error, psycopg.Error) else str(error)
