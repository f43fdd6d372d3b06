"""One attempt: send the task while its grant is good, decide what the reply means, hand the end to the completer."""

from __future__ import annotations

import math
import random
import time
import traceback
from collections.abc import Awaitable, Callable

import anyio

from llmqueue import policy
from llmqueue.backend import Backend, Call, sending
from llmqueue.errors import LlmqueueError
from llmqueue.estimate import estimate_input_tokens
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
)

Settle = Callable[[Settlement], None]
# top_up(fence, input_charge): False when the charge cannot be raised to that now
TopUp = Callable[[int, int], Awaitable[bool]]

# The charge by bytes is good enough within this: a statement more per task would cost more than it is worth.
TOP_UP_FROM = 1.25
TOP_UP_FROM_TOKENS = 16
# what an integer column takes
MOST_TOKENS = 2**31 - 1


class Runner:
    """Runs attempts. `settle` must not block: an attempt that has its answer ends."""

    def __init__(self, backend: Backend, gate: Gate, settle: Settle, top_up: TopUp, rng: random.Random) -> None:
        self._backend = backend
        self._gate = gate
        self._settle = settle
        self._top_up = top_up
        self._topping_up = anyio.Lock()  # one at a time: claims and flushes need connections too
        self._rng = rng

    async def run(self, grant: Grant) -> None:
        """Settles the grant exactly once, whatever happens; raises only cancellation."""
        try:
            await self._run(grant)
        finally:
            self._gate.ended(grant)

    async def _run(self, grant: Grant) -> None:
        noted = sending.Sending(grant.send_before)
        sending.current.set(noted)
        if grant.task.unreadable is not None:
            self._settle(_end(grant, noted, Bury("unreadable_task", grant.task.unreadable)))
            return
        estimate = None if grant.task.tokens is None else estimate_input_tokens(grant.task.prompt)
        try:
            decision = await self._decide(grant, noted, estimate)
        except anyio.get_cancelled_exc_class():
            # Drain is over. What was never sent goes back whole; what was may have been paid and counts.
            stopped = Retry("worker_stopped", "the worker stopped before the answer came", 0.0, counts=True)
            decision = stopped if noted.sent_at is not None else Release("worker_stopped")
            self._settle(_end(grant, noted, decision, estimate))
            raise
        self._settle(_end(grant, noted, decision, estimate))

    async def _decide(self, grant: Grant, noted: sending.Sending, estimate: int | None) -> Decision:
        attempt_no = grant.task.attempt_no
        try:
            if estimate is not None and not await self._is_charged(grant, estimate):
                return Release("tokens")
            reply = await self._send(grant, noted)
            return policy.decide(reply, attempt_no, self._rng, self._gate.judge(grant, reply))
        except sending.LateGrant:
            return LATE
        except Exception as error:  # noqa: BLE001 - an adapter's bug is this attempt's end, not the worker's
            # Neither its message nor its traceback: they may quote the prompt. `tasks show` has the message.
            frame = traceback.extract_tb(error.__traceback__)[-1]
            where = f"{frame.filename}:{frame.lineno}"
            logger().error(Event.ADAPTER_RAISED, model=grant.model, error_class=type(error).__name__, where=where)
            message = f"{type(error).__name__} at {where}: {error}"[:300]
            return policy.decide(Breakdown("adapter_raised", message), attempt_no, self._rng)

    async def _is_charged(self, grant: Grant, estimate: int) -> bool:
        """Tells whether the prompt's tokens are charged, after raising a charge that is clearly too low.

        A charge that cannot be raised now, or of which that is not known, means that the task goes back unsent. The
        time of the grant goes on meanwhile: the check before the first byte holds as ever.
        """
        charged = grant.task.input_charge
        need = min(math.ceil(estimate * (grant.kinds_ratio or 1.0)), MOST_TOKENS)
        if charged is None or need <= TOP_UP_FROM * charged or need < charged + TOP_UP_FROM_TOKENS:
            return True
        async with self._topping_up:
            if time.monotonic() > grant.send_before:
                return True  # too late anyway, and that is what it is called
            try:
                return await self._top_up(grant.task.fence, need)
            except LlmqueueError:
                return False  # whether it was raised is not known; a release gives back what was charged

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


def _end(grant: Grant, noted: sending.Sending, decision: Decision, estimate: int | None = None) -> Settlement:
    if noted.sent_at is None:
        return Settlement(grant, decision, None, None, estimate)
    return Settlement(grant, decision, noted.sent_at - grant.granted_at, time.monotonic() - noted.sent_at, estimate)
