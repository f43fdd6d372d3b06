"""The worker: one task group that owns all concurrency. Read serve() to see every loop there is."""

from __future__ import annotations

import asyncio
import math
import os
import random
import signal
import socket
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from uuid import uuid4

import anyio
from anyio.abc import TaskStatus

from llmqueue import __version__
from llmqueue.backend import Backend
from llmqueue.backend.health import BackendHealth
from llmqueue.db.listen import Listener, WakeSignal
from llmqueue.db.mapping import Mapping
from llmqueue.db.store import Store, Stranded
from llmqueue.errors import DatabaseUnreachable, LlmqueueError, SqlError
from llmqueue.logs import Event, logger
from llmqueue.spill.file import FOLDER, Database, Spill
from llmqueue.spill.recovery import SpillRecovery
from llmqueue.spill.writer import SpillWriter
from llmqueue.types import Grant, Settlement
from llmqueue.worker import maintenance
from llmqueue.worker.claimer import Claimer
from llmqueue.worker.drain import until_drained
from llmqueue.worker.executor import Executor
from llmqueue.worker.flusher import Flusher
from llmqueue.worker.health_reporter import HealthReporter
from llmqueue.worker.heartbeat import Heartbeat

# After the calls have ended: until then ends are sent to a database that does not take them.
SETTLE_TIMEOUT_S = 10.0
# Of these, until they are written to the spill whatever their age: a flush takes some 20 ms.
SETTLE_SOON_S = 1.0
# An adapter may swallow the end of its call: it is told again.
CANCEL_AGAIN_S = 0.05
SAY_DRAINING_S = 2.0
# A claim under way is waited for at least that long, whatever DRAIN_S: given up, it may have been made all the same.
CLAIM_S = 5.0


@dataclass(frozen=True, slots=True)
class WorkerOptions:
    """`models` None serves all; `drain_wait_s` None runs for ever, else ends when nothing can run within that time.

    `home` holds the spill, which is for `database` alone.
    `is_pooled`: `dsn` leads to a pooler; there is no listener then unless `listen_dsn` leads past it.
    """

    dsn: str
    listen_dsn: str | None
    is_pooled: bool
    backend_url: str
    slots: int
    models: Sequence[str] | None
    lease_s: float
    drain_s: float
    guard_s: float
    keep_attempts: timedelta
    drain_wait_s: float | None
    home: Path
    database: Database


@dataclass(frozen=True, slots=True)
class Report:
    """How a worker ended. `stranded` are tasks that a drain had to leave; None: it was not drained.

    Of the ends that are not settled, `spilled` lie in the file `spill` for the next start; the rest is lost.
    """

    unsettled: int
    spilled: int
    spill: Path
    stranded: Sequence[Stranded] | None
    is_outgrown: bool


class Daemon:
    """The loops of one worker and what they share."""

    def __init__(self, options: WorkerOptions, mapping: Mapping, backend: Backend) -> None:
        self._options = options
        worker = uuid4()
        self._store = Store(
            options.dsn,
            worker,
            prompt_is_json=mapping.prompt_is_json,
            answer_is_json=mapping.answer_is_json,
            is_pooled=options.is_pooled,
        )
        name = f"{socket.gethostname()}:{os.getpid()}"
        self._backend = backend
        self._wake = WakeSignal(can_listen=options.listen_dsn is not None or not options.is_pooled)
        self._health = BackendHealth(backend, options.backend_url, self._wake)
        self._heartbeat = Heartbeat(self._store, name, options.models, options.lease_s, options.guard_s)
        self._listener = Listener(options.listen_dsn or options.dsn, worker, self._wake, deaf_after_s=options.lease_s)
        self._spill = Spill(options.home / FOLDER, worker, options.database)
        self._flusher = Flusher(self._store, self._settled, self._spill, self._reconnect)
        self._spill_writer = SpillWriter(self._flusher, self._spill)
        self._recovery = SpillRecovery(
            self._store, options.home / FOLDER, options.database, own=self._spill.path, reconnect=self._reconnect
        )
        self._heartbeat.may_sweep = lambda: not self._flusher.is_behind and not self._recovery.is_behind
        self._executor = Executor(backend, self._health, self._ended, self._store.top_up, random.Random())
        self._claimer = Claimer(
            self._store,
            self._wake,
            self._health,
            self._heartbeat,
            self._start,
            self._flusher.put,
            slots=options.slots,
            models=options.models,
        )
        self._claimer.is_full = lambda: self._spill_writer.is_full
        self._attempts: asyncio.TaskGroup
        self._stranded: Sequence[Stranded] | None = None
        self._idle = anyio.Event()
        self._stopped_at = math.inf

    async def serve(self) -> Report:
        """Works until a signal, or with drain_wait_s until nothing can run."""
        await self._store.open()
        try:
            async with anyio.create_task_group() as loops:
                await loops.start(self._watch_signals)
                logger().info(
                    Event.WORKER_STARTED,
                    version=__version__,
                    worker=str(self._store.worker),
                    slots=self._options.slots,
                    backend=self._options.backend_url,
                )
                self._say_pooler()
                if self._wake.can_listen:
                    loops.start_soon(self._listener.run)
                loops.start_soon(self._health.run)
                loops.start_soon(HealthReporter(self._store, self._health).run)
                loops.start_soon(self._flusher.run)
                loops.start_soon(self._spill_writer.run)
                loops.start_soon(self._recovery.run)
                loops.start_soon(self._heartbeat.run, lambda: self._claimer.under_way)
                loops.start_soon(self._watch_schema)
                loops.start_soon(maintenance.run, self._store, self._options.keep_attempts)
                if self._options.drain_wait_s is not None:
                    loops.start_soon(self._drain, self._options.drain_wait_s)
                await self._dispatch()
                settle_by = anyio.current_time() + SETTLE_TIMEOUT_S
                await self._spill_unsettled()
                self._flusher.hurry()
                self._recovery.hurry()
                loops.cancel_scope.cancel()
            return await self._leave(settle_by)
        finally:
            with anyio.CancelScope(shield=True):
                await self._spill_writer.spill()  # also when a wrong password or another schema ends us
                await self._backend.aclose()
                await self._store.aclose()

    def _say_pooler(self) -> None:
        if self._options.is_pooled and not self._wake.can_listen:
            logger().warning(
                Event.POOLER_SEEN,
                effect="no wake-ups through it: polling every second",
                remedy="set LLMQUEUE_LISTEN_URL to the database itself; settings such as timeouts: ALTER ROLE … SET",
            )
        elif self._options.is_pooled:
            logger().info(Event.POOLER_SEEN, remedy="settings of the session, such as timeouts: ALTER ROLE … SET")

    async def _dispatch(self) -> None:
        """Runs the claimer until it is told to stop, then waits up to drain_s for the calls that are under way.

        That is counted from the signal, as by whoever sent it: the last claim may wait for a silent database. Not for
        their ends to be settled: that has a time of its own, and the database may be away.
        """
        # One of asyncio's own: a group of anyio's takes five times as long to start a task, and there is one per call.
        async with asyncio.TaskGroup() as self._attempts:
            try:
                await self._claimer.run()
                running = len(self._claimer.running)
                logger().info(Event.WORKER_STOPPING, running=running, drain_s=self._options.drain_s)
                await self._say_draining()
                with anyio.CancelScope(deadline=self._stopped_at + self._options.drain_s):
                    while len(self._claimer.running) > self._flusher.unsettled:
                        self._idle = anyio.Event()
                        await self._idle.wait()
            finally:
                with anyio.CancelScope(shield=True):
                    while self._executor.cancel():  # noqa: ASYNC110 - it is told again, not waited for
                        await anyio.sleep(CANCEL_AGAIN_S)

    async def _say_draining(self) -> None:
        try:
            with anyio.move_on_after(SAY_DRAINING_S):
                await self._store.do_chores(["drain"], self._claimer.under_way)
        except (DatabaseUnreachable, SqlError) as error:
            self._store.outage.began(error)

    async def _spill_unsettled(self) -> None:
        """Waits for the ends to be settled for a moment, then has all of them on disk before the loops end.

        Loops take their time to end when the database is silent, and we may be killed meanwhile.
        """
        with anyio.move_on_after(SETTLE_SOON_S):
            while self._flusher.unsettled:
                self._idle = anyio.Event()
                await self._idle.wait()
        if self._flusher.unsettled:
            await self._spill_writer.spill()

    def _start(self, *grants: Grant) -> None:
        self._attempts.create_task(self._executor.run(*grants))

    def _ended(self, settlement: Settlement) -> None:
        self._flusher.put(settlement)
        self._claimer.ended(settlement)
        self._idle.set()

    def _settled(self, settlement: Settlement) -> None:
        self._claimer.settled(settlement)
        self._idle.set()

    async def _leave(self, settle_by: float) -> Report:
        async with anyio.create_task_group() as spilling:
            spilling.start_soon(self._spill_writer.run)  # whoever stops us may not wait for as long as we do
            unsettled = await self._flusher.drain(settle_by - anyio.current_time())
            spilling.cancel_scope.cancel()
        in_memory = await self._spill_writer.spill()
        if not unsettled:
            await self._say_left()
        spilled = unsettled - in_memory
        logger().info(Event.WORKER_STOPPED, unsettled=unsettled, spilled=spilled)
        return Report(unsettled, spilled, self._spill.path, self._stranded, self._store.outgrown.is_set())

    async def _say_left(self) -> None:
        """Not with unsettled ends: what is still ours would be swept and called again at once, not after a lease."""
        try:
            with anyio.fail_after(5):
                await self._claimer.disown_lost()
                await self._store.leave()
        except (DatabaseUnreachable, SqlError, TimeoutError) as error:
            # The others find out by the lease.
            self._store.outage.began(error)

    async def _reconnect(self) -> None:
        await self._heartbeat.beat(self._claimer.under_way)

    async def _drain(self, wait_s: float) -> None:
        self._stranded = await until_drained(self._store, self._options.models, wait_s)
        self._stop()

    def _stop(self) -> None:
        self._stopped_at = min(self._stopped_at, anyio.current_time())
        self._spill_writer.hurry()
        self._claimer.stop(claim_by=self._stopped_at + max(self._options.drain_s, CLAIM_S))

    async def _watch_schema(self) -> None:
        await self._store.outgrown.wait()
        logger().error(
            Event.SCHEMA_OUTGROWN,
            error="a newer llmqueue has upgraded the schema",
            effect="claims no more, finishes what runs, then ends",
            remedy="install the new release here too",
        )
        self._stop()

    async def _watch_signals(self, *, task_status: TaskStatus[None]) -> None:
        with anyio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
            task_status.started()
            is_first = True
            async for _ in signals:
                if not is_first:
                    logger().warning(Event.WORKER_KILLED, effect="other workers run its tasks again after the lease")
                    os._exit(130)
                is_first = False
                self._stop()


async def serve(options: WorkerOptions, mapping: Mapping, backend: Backend) -> Report:
    """Runs a worker until it is told to stop. Raises DatabaseRefused, NotInitialised or SchemaTooNew, nothing else."""
    try:
        return await Daemon(options, mapping, backend).serve()
    except BaseExceptionGroup as group:
        for error in _leaves(group):
            if isinstance(error, LlmqueueError):
                raise error from None
        raise


def _leaves(group: BaseExceptionGroup[BaseException]) -> Iterator[BaseException]:
    for error in group.exceptions:
        if isinstance(error, BaseExceptionGroup):
            yield from _leaves(error)
        else:
            yield error
