"""One attempt: send the task while its grant is good, decide what the reply means, hand the end to the completer."""

from __future__ import annotations

import random
import time
import traceback
from collections.abc import Callable

import anyio

from llmqueue import policy
from llmqueue.backend import Backend, Call, sending
from llmqueue.gate import Gate
from llmqueue.logs import Event, logger
from llmqueue.models import (
    LATE,
    Breakdown,
    Bury,
    Decision,
    Grant,
    Late,
    Release,
    Reply,
    Retry,
    Settlement,
    Unreachable,
)

Settle = Callable[[Settlement], None]


class Runner:
    """Runs attempts. `settle` must not block: an attempt that has its answer ends."""

    def __init__(self, backend: Backend, gate: Gate, settle: Settle, rng: random.Random) -> None:
        self._backend = backend
        self._gate = gate
        self._settle = settle
        self._rng = rng

    async def run(self, grant: Grant) -> None:
        """Settles the grant exactly once, whatever happens; raises only cancellation."""
        noted = sending.Sending(grant.send_before)
        sending.current.set(noted)
        if grant.task.unreadable is not None:
            self._settle(_end(grant, noted, Bury("unreadable_task", grant.task.unreadable)))
            return
        try:
            decision = await self._decide(grant, noted)
        except anyio.get_cancelled_exc_class():
            # Drain is over. What was never sent goes back whole; what was may have been paid and counts.
            stopped = Retry("worker_stopped", "the worker stopped before the answer came", 0.0, counts=True)
            self._settle(_end(grant, noted, stopped if noted.sent_at is not None else Release("worker_stopped")))
            raise
        self._settle(_end(grant, noted, decision))

    async def _decide(self, grant: Grant, noted: sending.Sending) -> Decision:
        attempt_no = grant.task.attempt_no
        try:
            reply = await self._send(grant, noted)
            if isinstance(reply, Unreachable):
                self._gate.close()
            return policy.decide(reply, attempt_no, self._rng)
        except sending.LateGrant:
            return LATE
        except Exception as error:  # noqa: BLE001 - an adapter's bug is this attempt's end, not the worker's
            # Neither its message nor its traceback: they may quote the prompt. `tasks show` has the message.
            frame = traceback.extract_tb(error.__traceback__)[-1]
            where = f"{frame.filename}:{frame.lineno}"
            logger().error(Event.ADAPTER_RAISED, model=grant.model, error_class=type(error).__name__, where=where)
            message = f"{type(error).__name__} at {where}: {error}"[:300]
            return policy.decide(Breakdown("adapter_raised", message), attempt_no, self._rng)

    async def _send(self, grant: Grant, noted: sending.Sending) -> Reply:
        if time.monotonic() > grant.send_before:
            return Late()
        task = grant.task
        call = Call(grant.model, task.prompt, task.params, task.idempotency_key, grant.timeout_s)
        try:
            with anyio.fail_after(grant.timeout_s):
                return await self._backend.call(call)
        except TimeoutError:
            if noted.sent_at is None:
                return Late()
            return Breakdown("timeout", f"no answer within {grant.timeout_s:.0f} s")


def _end(grant: Grant, noted: sending.Sending, decision: Decision) -> Settlement:
    if noted.sent_at is None:
        return Settlement(grant, decision, None, None)
    return Settlement(grant, decision, noted.sent_at - grant.granted_at, time.monotonic() - noted.sent_at)
