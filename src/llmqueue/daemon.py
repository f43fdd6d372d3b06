"""The worker: one task group that owns all concurrency. Read serve() to see every loop there is."""

from __future__ import annotations

import os
import random
import signal
import socket
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from uuid import uuid4

import anyio
from anyio.abc import TaskGroup, TaskStatus

from llmqueue import __version__, housekeeper
from llmqueue.attempt import Runner
from llmqueue.backend import Backend
from llmqueue.completer import Completer
from llmqueue.dispatcher import Dispatcher
from llmqueue.drain import until_drained
from llmqueue.errors import DatabaseUnreachable, LlmqueueError, SqlError
from llmqueue.gate import Gate
from llmqueue.leases import Leases
from llmqueue.logs import Event, logger
from llmqueue.mapping import Mapping
from llmqueue.models import Grant, Settlement
from llmqueue.store import Store, Stranded
from llmqueue.trouble import TroubleReport
from llmqueue.wakeup import Bell, Listener

SETTLE_TIMEOUT_S = 10.0


@dataclass(frozen=True, slots=True)
class WorkerOptions:
    """`models` None serves all; `drain_wait_s` None runs for ever, else ends when nothing can run within that time."""

    dsn: str
    listen_dsn: str | None
    backend_url: str
    slots: int
    models: Sequence[str] | None
    lease_s: float
    drain_s: float
    guard_s: float
    keep_attempts: timedelta
    drain_wait_s: float | None


@dataclass(frozen=True, slots=True)
class Report:
    """How a worker ended. `stranded` are tasks that a drain had to leave; None: it was not drained."""

    unsettled: int
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
            is_pooled=options.listen_dsn is not None,
        )
        name = f"{socket.gethostname()}:{os.getpid()}"
        self._backend = backend
        self._bell = Bell()
        self._gate = Gate(backend, options.backend_url, self._bell)
        self._leases = Leases(self._store, name, options.models, options.lease_s, options.guard_s)
        self._listener = Listener(options.listen_dsn or options.dsn, worker, self._bell, deaf_after_s=options.lease_s)
        self._completer = Completer(self._store, self._settled)
        self._runner = Runner(backend, self._gate, self._completer.put, self._store.top_up, random.Random())
        self._dispatcher = Dispatcher(
            self._store,
            self._bell,
            self._gate,
            self._leases,
            self._start,
            self._completer.put,
            slots=options.slots,
            models=options.models,
        )
        self._attempts: TaskGroup
        self._stranded: Sequence[Stranded] | None = None
        self._idle = anyio.Event()

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
                loops.start_soon(self._listener.run)
                loops.start_soon(self._gate.run)
                loops.start_soon(TroubleReport(self._store, self._gate).run)
                loops.start_soon(self._completer.run)
                loops.start_soon(self._leases.run, lambda: len(self._dispatcher.running))
                loops.start_soon(self._watch_schema)
                loops.start_soon(housekeeper.run, self._store, self._options.keep_attempts)
                if self._options.drain_wait_s is not None:
                    loops.start_soon(self._drain, self._options.drain_wait_s)
                await self._dispatch()
                loops.cancel_scope.cancel()
            return await self._leave()
        finally:
            with anyio.CancelScope(shield=True):
                await self._backend.aclose()
                await self._store.aclose()

    async def _dispatch(self) -> None:
        """Runs the dispatcher until it is told to stop, then waits up to drain_s for what is under way."""
        async with anyio.create_task_group() as self._attempts:
            await self._dispatcher.run()
            running = len(self._dispatcher.running)
            logger().info(Event.WORKER_STOPPING, running=running, drain_s=self._options.drain_s)
            await self._say_draining()
            with anyio.move_on_after(self._options.drain_s):
                while self._dispatcher.running:
                    self._idle = anyio.Event()
                    await self._idle.wait()
            self._attempts.cancel_scope.cancel()

    async def _say_draining(self) -> None:
        try:
            await self._store.do_chores(["drain"], len(self._dispatcher.running))
        except (DatabaseUnreachable, SqlError) as error:
            self._store.outage.began(error)

    def _start(self, grant: Grant) -> None:
        self._attempts.start_soon(self._runner.run, grant)

    def _settled(self, settlement: Settlement) -> None:
        self._dispatcher.settled(settlement)
        if not self._dispatcher.running:
            self._idle.set()

    async def _leave(self) -> Report:
        unsettled = await self._completer.drain(SETTLE_TIMEOUT_S)
        try:
            with anyio.fail_after(5):
                await self._store.leave()
        except (DatabaseUnreachable, SqlError, TimeoutError) as error:
            # The others find out by the lease.
            self._store.outage.began(error)
        logger().info(Event.WORKER_STOPPED, unsettled=unsettled)
        return Report(unsettled, self._stranded, self._store.outgrown.is_set())

    async def _drain(self, wait_s: float) -> None:
        self._stranded = await until_drained(self._store, self._options.models, wait_s)
        self._dispatcher.stop()

    async def _watch_schema(self) -> None:
        await self._store.outgrown.wait()
        logger().error(
            Event.SCHEMA_OUTGROWN,
            error="a newer llmqueue has upgraded the schema",
            effect="claims no more, finishes what runs, then ends",
            remedy="install the new release here too",
        )
        self._dispatcher.stop()

    async def _watch_signals(self, *, task_status: TaskStatus[None]) -> None:
        with anyio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
            task_status.started()
            is_first = True
            async for _ in signals:
                if not is_first:
                    logger().warning(Event.WORKER_KILLED, effect="other workers run its tasks again after the lease")
                    os._exit(130)
                is_first = False
                self._dispatcher.stop()


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
