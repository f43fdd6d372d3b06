"""A worker that freezes itself: `python -m tests.support.frozen_worker POINT MARKER [options of the worker]`.

It is the real worker with a hook at one point. When the worker first reaches that point, the hook writes MARKER and
stops the process (SIGSTOP). The test sends SIGCONT.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Awaitable, Callable
from functools import wraps
from pathlib import Path
from typing import Any, Final, TypeVar

import psycopg

from llmqueue.backend.http import PunctualConnector, PunctualRequest
from llmqueue.cli import main
from llmqueue.db.store import Store
from llmqueue.worker.flusher import Flusher

Call = TypeVar("Call", bound=Callable[..., Any])

# point -> (class, method, whether it freezes before the method or after it)
POINTS: Final[dict[str, tuple[type, str, str]]] = {
    "before the claim": (Store, "claim", "before"),
    "claim sent, answer not read": (psycopg.AsyncConnection, "wait", "claim"),
    "claimed, nothing begun": (Store, "claim", "after"),
    "before connecting": (PunctualConnector, "connect", "before"),
    "connected, nothing sent": (PunctualConnector, "connect", "after"),
    "before the first byte": (PunctualRequest, "write_bytes", "before"),
    "sent": (PunctualRequest, "write_bytes", "after"),
    "answered, not settled": (Flusher, "_flush", "before"),
    "settle sent, answer not read": (psycopg.AsyncConnection, "wait", "settle"),
    "settled": (Store, "settle", "after"),
}


def freeze(marker: Path) -> None:
    """Stops this process, once."""
    if marker.exists():
        return
    marker.touch()
    os.kill(os.getpid(), signal.SIGSTOP)


def hook(owner: type, name: str, when: str, marker: Path) -> None:
    real: Callable[..., Awaitable[Any]] = getattr(owner, name)

    @wraps(real)
    async def hooked(self: Any, *args: Any, **kwargs: Any) -> Any:
        if when == "before":
            freeze(marker)
        result = await real(self, *args, **kwargs)
        if when == "after" and not _is_empty(result):
            freeze(marker)
        return result

    setattr(owner, name, hooked)


def hook_statement(function: str, marker: Path) -> None:
    """Freezes when the statement that calls this function is sent and its result is not read yet."""
    real_execute, real_wait = psycopg.AsyncCursor.execute, psycopg.AsyncConnection.wait

    async def execute(self: Any, query: Any, *args: Any, **kwargs: Any) -> Any:
        self.connection.is_calling = f"llmqueue.{function}(" in str(query)
        try:
            return await real_execute(self, query, *args, **kwargs)
        finally:
            self.connection.is_calling = False

    async def wait(self: Any, generator: Any, *args: Any, **kwargs: Any) -> Any:
        if getattr(self, "is_calling", False):
            generator = _freezing(generator, self, marker)
        return await real_wait(self, generator, *args, **kwargs)

    psycopg.AsyncCursor.execute = execute  # type: ignore[method-assign]
    psycopg.AsyncConnection.wait = wait  # type: ignore[method-assign, assignment]


def _freezing(generator: Any, connection: Any, marker: Path) -> Any:
    """Wraps a psycopg generator, and freezes when it waits for the server after the whole statement is sent."""
    try:
        wanted = next(generator)
        while True:
            if connection.pgconn.flush() == 0:
                freeze(marker)
            got = yield wanted
            wanted = generator.send(got)
    except StopIteration as done:
        return done.value


def _is_empty(result: Any) -> bool:
    """Returns whether the result is a claim without a grant, at which freezing makes no sense."""
    return getattr(result, "grants", True) == ()


def install(point: str, marker: Path) -> None:
    owner, name, when = POINTS[point]
    if when in {"claim", "settle"}:
        hook_statement(when, marker)
    else:
        hook(owner, name, when, marker)


if __name__ == "__main__":
    install(sys.argv[1], Path(sys.argv[2]))
    sys.argv = ["llmqueue", "worker", *sys.argv[3:]]
    main()
