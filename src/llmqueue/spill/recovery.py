"""Inherits what workers that are gone left in the spill folder, and settles it in their names.

A kill -9 while the database is away, a container that starts anew with its volume: the lock on the file is free then.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path

import anyio
from anyio import to_thread

from llmqueue.db.store import Store
from llmqueue.logs import Event, logger
from llmqueue.spill.file import SUFFIX, Database, Inheritance, NotOurs, inherit
from llmqueue.types import Settlement
from llmqueue.worker.flusher import Flusher

LOOK_S = 5.0
# Somebody's open transaction holds a task's row.
BUSY_S = 2.0


class SpillRecovery:
    """Looks at once and then every few seconds: a neighbour with the same LLMQUEUE_HOME may be killed at any time."""

    def __init__(
        self, store: Store, folder: Path, database: Database, own: Path, reconnect: Callable[[], Awaitable[None]]
    ) -> None:
        self._store = store
        self._folder = folder
        self._database = database
        self._own = own
        self._reconnect = reconnect
        self._open: dict[Path, Flusher] = {}
        self._left_alone: set[Path] = set()
        self._settled: set[Path] = set()
        self.is_behind = True
        """Not everything that lies there has been sent once."""

    async def run(self) -> None:
        """Looks for ever."""
        while True:
            await self.look()
            await anyio.sleep(BUSY_S if self._open else LOOK_S)

    async def look(self) -> None:
        for path in await to_thread.run_sync(self._others):
            if path not in self._open and path not in self._settled:
                await self._inherit(path)
        for path, flusher in list(self._open.items()):
            if not await flusher.try_all():
                await flusher.tidy()
                flusher.let_go()
                # one that cannot be removed would else be inherited and settled again every few seconds
                self._settled.add(path)
                del self._open[path]
        self.is_behind = False

    def hurry(self) -> None:
        for flusher in self._open.values():
            flusher.hurry()

    def _others(self) -> list[Path]:
        try:
            return sorted(path for path in self._folder.glob(f"*{SUFFIX}") if path != self._own)
        except OSError:
            return []  # the spill_writer says it

    async def _inherit(self, path: Path) -> None:
        try:
            inheritance = await to_thread.run_sync(inherit, path, self._database)
        except FileNotFoundError:
            return  # settled by its owner, or by another recovery
        except NotOurs as error:
            self._leave_alone(path, error.reason, error.remedy)
        except OSError as error:
            remedy = "let this user read it, or start a worker as the user who can"
            self._leave_alone(path, error.strerror or str(error), remedy)
        else:
            if inheritance is not None:
                self._take(path, inheritance)

    def _take(self, path: Path, inheritance: Inheritance) -> None:
        if inheritance.damaged:
            fields = {"lines": inheritance.damaged, "is_torn": inheritance.is_torn}
            logger().warning(Event.SPILL_DAMAGED, file=str(path), **fields)
        worker = str(inheritance.spill.worker)
        logger().warning(Event.SPILL_RECOVERED, file=str(path), of_worker=worker, ends=len(inheritance.left))
        flusher = Flusher(self._store, _ignore, inheritance.spill, self._reconnect)
        for left in inheritance.left:
            flusher.put_left(left)
        self._open[path] = flusher

    def _leave_alone(self, path: Path, reason: str, remedy: str) -> None:
        if path not in self._left_alone:
            self._left_alone.add(path)
            logger().warning(Event.SPILL_LEFT, file=str(path), error=reason, remedy=remedy)


def _ignore(_: Settlement) -> None:
    """The slot was another process's."""
