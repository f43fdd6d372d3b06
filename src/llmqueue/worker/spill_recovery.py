"""Takes over what workers that are gone left in the spill folder, and settles it in their names.

After a kill -9 while the database is away, or when a container starts anew with its volume, the lock on the file is
free.
"""

from __future__ import annotations

from pathlib import Path

import anyio
from anyio import to_thread

from llmqueue.db.store import Store
from llmqueue.logs import Event, logger
from llmqueue.spill.answers import SpilledAnswers
from llmqueue.spill.file import SUFFIX, Database
from llmqueue.spill.inheritance import Inheritance, NotOurs, inherit
from llmqueue.spill.pending import PendingSettlements
from llmqueue.worker.flusher import Flusher
from llmqueue.worker.heartbeat import Heartbeat
from llmqueue.worker.in_flight import InFlight

LOOK_S = 5.0
# Somebody's open transaction holds a task's row.
BUSY_S = 2.0


class SpillRecovery:
    """Looks at once and then every few seconds: a neighbour with the same LLMQUEUE_HOME may be killed at any time.

    `own` is the file of this worker. `heartbeat` may sweep once everything that lies there has been sent once.
    """

    def __init__(
        self, store: Store, heartbeat: Heartbeat, in_flight: InFlight, folder: Path, database: Database, own: Path
    ) -> None:
        self._store = store
        self._heartbeat = heartbeat
        self._in_flight = in_flight
        self._folder = folder
        self._database = database
        self._own = own
        self._open: dict[Path, tuple[Flusher, SpilledAnswers]] = {}
        self._left_alone: set[Path] = set()
        self._settled: set[Path] = set()

    async def run(self) -> None:
        """Looks for ever."""
        while True:
            await self.look()
            await anyio.sleep(BUSY_S if self._open else LOOK_S)

    async def look(self) -> None:
        for path in await to_thread.run_sync(self._others):
            if path not in self._open and path not in self._settled:
                await self._inherit(path)
        for path, (flusher, answers) in list(self._open.items()):
            if not await flusher.try_all():
                await answers.tidy()
                answers.close()
                # one that cannot be removed would otherwise be inherited and settled again every few seconds
                self._settled.add(path)
                del self._open[path]
        self._heartbeat.spills_are_sent()

    def hurry(self) -> None:
        for flusher, _ in self._open.values():
            flusher.hurry()

    def _others(self) -> list[Path]:
        try:
            return sorted(path for path in self._folder.glob(f"*{SUFFIX}") if path != self._own)
        except OSError:
            return []  # the spill's writer logs it

    async def _inherit(self, path: Path) -> None:
        try:
            inheritance = await to_thread.run_sync(inherit, path, self._database)
        except FileNotFoundError:
            return  # settled by its owner, or by another worker's recovery
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
        pending, answers = PendingSettlements(), SpilledAnswers(inheritance.spill)
        for left in inheritance.left:
            pending.put_left(left)
        self._open[path] = Flusher(self._store, self._heartbeat, self._in_flight, pending, answers), answers

    def _leave_alone(self, path: Path, reason: str, remedy: str) -> None:
        if path not in self._left_alone:
            self._left_alone.add(path)
            logger().warning(Event.SPILL_LEFT, file=str(path), error=reason, remedy=remedy)
