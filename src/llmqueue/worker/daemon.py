"""The worker: one task group that owns all concurrency. Read serve() to see every loop there is.

Who knows whom, in one direction: claimer → planner, executor → flusher → in_flight. A claim's grants go down this
line, each task's end comes to in_flight, and in_flight sets the wake-up signal that the claimer waits for.
"""

from __future__ import annotations

import math
import os
import random
import signal
import socket
from collections.abc import Iterator, Sequence
from uuid import uuid4

import anyio
from anyio.abc import TaskStatus

from llmqueue import __version__
from llmqueue.backend.health import BackendHealth
from llmqueue.backend.protocol import Backend
from llmqueue.db.listen import Listener, WakeSignal
from llmqueue.db.mapping import Mapping
from llmqueue.db.store import Store, Stranded
from llmqueue.errors import LlmqueueError
from llmqueue.logs import Event, logger
from llmqueue.spill.answers import SpilledAnswers
from llmqueue.spill.file import FOLDER, Spill
from llmqueue.spill.pending import PendingSettlements
from llmqueue.spill.writer import SpillWriter
from llmqueue.worker.batching import Batching
from llmqueue.worker.claimer import Claimer
from llmqueue.worker.drain import until_drained
from llmqueue.worker.executor import Executor
from llmqueue.worker.flusher import Flusher
from llmqueue.worker.health_reporter import HealthReporter
from llmqueue.worker.heartbeat import Heartbeat
from llmqueue.worker.in_flight import InFlight
from llmqueue.worker.maintenance import prune_attempts
from llmqueue.worker.options import Report, WorkerOptions
from llmqueue.worker.planner import Planner
from llmqueue.worker.spill_recovery import SpillRecovery

# After the calls have ended: until then their ends are sent to a database that does not take them.
SETTLE_TIMEOUT_S = 10.0
# Of these, until they are written to the spill whatever their age: a flush takes some 20 ms.
SETTLE_SOON_S = 1.0
TELL_DRAINING_S = 2.0
LEAVE_S = 5.0
# A claim under way is waited for at least that long, whatever DRAIN_S: given up, it may have been made all the same.
CLAIM_S = 5.0


class Daemon:
    """The loops of one worker and what they share."""

    def __init__(self, options: WorkerOptions, mapping: Mapping, backend: Backend) -> None:
        self._options = options
        self._backend = backend
        worker = uuid4()
        self._store = Store(
            options.dsn,
            worker,
            prompt_is_json=mapping.prompt_is_json,
            answer_is_json=mapping.answer_is_json,
            is_pooled=options.is_pooled,
        )
        self._wake = WakeSignal(can_listen=options.can_listen)
        self._listener = Listener(options.listen_dsn or options.dsn, worker, self._wake, silent_after_s=options.lease_s)
        self._health = BackendHealth(backend, options.backend_url, self._wake)
        self._spill = Spill(options.home / FOLDER, worker, options.database)
        self._pending = PendingSettlements()
        answers = SpilledAnswers(self._spill)
        self._spill_writer = SpillWriter(self._pending, self._spill, answers)
        planner = Planner(random.Random(), models=options.models, can_announce=options.can_listen)
        batching = Batching(can_batch=self._health.can_batch)
        self._in_flight = InFlight(options.slots, planner, batching, self._wake)
        self._heartbeat = Heartbeat(
            self._store,
            self._in_flight,
            self._pending,
            name=f"{socket.gethostname()}:{os.getpid()}",
            models=options.models,
            lease_s=options.lease_s,
            guard_s=options.guard_s,
        )
        self._flusher = Flusher(self._store, self._heartbeat, self._in_flight, self._pending, answers)
        self._recovery = SpillRecovery(
            self._store,
            self._heartbeat,
            self._in_flight,
            options.home / FOLDER,
            options.database,
            own=self._spill.path,
        )
        self._executor = Executor(
            backend, self._health, batching, self._in_flight, self._flusher, self._store.top_up, random.Random()
        )
        self._claimer = Claimer(
            self._store,
            self._wake,
            self._health,
            self._heartbeat,
            planner,
            self._in_flight,
            self._pending,
            self._executor,
        )
        self._stranded: Sequence[Stranded] | None = None
        self._stopped_at = math.inf

    async def serve(self) -> Report:
        """Works until a signal, or with drain_wait_s until nothing can run."""
        await self._store.open()
        try:
            async with anyio.create_task_group() as loops:
                await loops.start(self._watch_signals)
                self._log_started()
                if self._wake.can_listen:
                    loops.start_soon(self._listener.run)
                loops.start_soon(self._health.run)
                loops.start_soon(HealthReporter(self._store, self._health).run)
                loops.start_soon(self._flusher.run)
                loops.start_soon(self._spill_writer.run)
                loops.start_soon(self._recovery.run)
                loops.start_soon(self._heartbeat.run)
                loops.start_soon(self._watch_schema)
                loops.start_soon(prune_attempts, self._store, self._options.keep_attempts)
                if self._options.drain_wait_s is not None:
                    loops.start_soon(self._drain, self._options.drain_wait_s)
                await self._work()
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

    def _log_started(self) -> None:
        logger().info(
            Event.WORKER_STARTED,
            version=__version__,
            worker=str(self._store.worker),
            slots=self._options.slots,
            backend=self._options.backend_url,
        )
        if self._options.is_pooled and not self._wake.can_listen:
            logger().warning(
                Event.POOLER_SEEN,
                effect="no wake-ups through it: polling every second",
                remedy="set LLMQUEUE_LISTEN_URL to the database itself; settings such as timeouts: ALTER ROLE … SET",
            )
        elif self._options.is_pooled:
            logger().info(Event.POOLER_SEEN, remedy="settings of the session, such as timeouts: ALTER ROLE … SET")

    async def _work(self) -> None:
        """Runs the claimer until it is told to stop, then waits up to drain_s for the calls that are under way.

        That time counts from the signal, as it does for whoever sent it: the last claim may wait for a silent database.
        It does not include the settling of the calls: that has a time of its own, and the database may be away.
        """
        async with self._executor.running():
            await self._claimer.run()
            calls = self._in_flight.calls
            logger().info(Event.WORKER_STOPPING, running=calls, drain_s=self._options.drain_s)
            with self._store.outage.tolerated(), anyio.move_on_after(TELL_DRAINING_S):
                await self._store.maintain(["drain"], calls)
            with anyio.CancelScope(deadline=self._stopped_at + self._options.drain_s):
                while self._in_flight.calls:
                    await self._in_flight.change()

    async def _spill_unsettled(self) -> None:
        """Waits for the ends to be settled for a moment, then has all of them on disk before the loops end.

        Loops take their time to end when the database is silent, and we may be killed meanwhile.
        """
        with anyio.move_on_after(SETTLE_SOON_S):
            while self._flusher.unsettled:
                await self._in_flight.change()
        if self._flusher.unsettled:
            await self._spill_writer.spill()

    async def _leave(self, settle_by: float) -> Report:
        async with anyio.create_task_group() as spilling:
            spilling.start_soon(self._spill_writer.run)  # whoever stops us may not wait for as long as we do
            unsettled = await self._flusher.drain(settle_by - anyio.current_time())
            spilling.cancel_scope.cancel()
        in_memory = await self._spill_writer.spill()
        if not unsettled:
            await self._tell_left()
        spilled = unsettled - in_memory
        logger().info(Event.WORKER_STOPPED, unsettled=unsettled, spilled=spilled)
        return Report(unsettled, spilled, self._spill.path, self._stranded, self._store.outgrown.is_set())

    async def _tell_left(self) -> None:
        """Not with unsettled ends: their tasks would be swept and called again at once, not after a lease."""
        with anyio.move_on_after(LEAVE_S) as scope, self._store.outage.tolerated():
            await self._claimer.release_lost()
            await self._store.leave()
        if scope.cancelled_caught:
            # The other workers find out by the lease.
            self._store.outage.began(TimeoutError(f"no answer within {LEAVE_S:.0f} s"))

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
