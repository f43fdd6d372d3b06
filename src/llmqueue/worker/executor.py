"""The calls: send the tasks of each while their grants are good, decide what the reply means, pass the ends on."""

from __future__ import annotations

import asyncio
import math
import random
import time
import traceback
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from typing import cast

import anyio

from llmqueue.backend import sending
from llmqueue.backend.health import BackendHealth
from llmqueue.backend.protocol import Backend, BatchBackend, Call
from llmqueue.errors import LlmqueueError
from llmqueue.estimate import estimate_input_tokens
from llmqueue.logs import Event, logger
from llmqueue.types import (
    LATE,
    Bury,
    Decision,
    Grant,
    Late,
    Release,
    Reply,
    Retry,
    Settlement,
    TransientError,
    value,
)
from llmqueue.worker import policy
from llmqueue.worker.batching import Batching
from llmqueue.worker.flusher import Flusher
from llmqueue.worker.grant_expiry import ClaimedGrants
from llmqueue.worker.in_flight import InFlight

# top_up(fence, input_charge): False when the charge cannot be raised to that now
TopUp = Callable[[int, int], Awaitable[bool]]

# The charge by bytes is good enough within this: a statement more per task would cost more than it is worth.
TOP_UP_FROM = 1.25
TOP_UP_FROM_TOKENS = 16
# what an integer column takes
MOST_TOKENS = 2**31 - 1
# An adapter may swallow the cancellation of its call; repeat it.
CANCEL_AGAIN_S = 0.05


@value
class _Attempt:
    """A grant that is to be sent, with our estimate of its input tokens; None: the model has no limit on tokens."""

    grant: Grant
    estimate: int | None


class Executor:
    """Runs the calls, each in a task of the event loop, and gives their ends to `flusher`."""

    def __init__(
        self,
        backend: Backend,
        health: BackendHealth,
        batching: Batching,
        in_flight: InFlight,
        flusher: Flusher,
        top_up: TopUp,
        rng: random.Random,
    ) -> None:
        self._backend = backend
        self._health = health
        self._batching = batching
        self._in_flight = in_flight
        self._flusher = flusher
        self._top_up = top_up
        self._topping_up = anyio.Lock()  # one at a time: claims and flushes need connections too
        self._group: asyncio.TaskGroup
        self._tasks: set[asyncio.Task[None] | None] = set()
        self._is_over = False
        self._rng = rng

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """start() may be called in here. At the end all calls are cancelled, and each settles its tasks."""
        # One of asyncio's own: a group of anyio's takes five times as long to start a task, and there is one per call.
        async with asyncio.TaskGroup() as self._group:
            try:
                yield
            finally:
                with anyio.CancelScope(shield=True):
                    while self.cancel():  # noqa: ASYNC110 - it is repeated, not waited for
                        await anyio.sleep(CANCEL_AGAIN_S)

    def gathers(self, model: str) -> bool:
        """Tells whether tasks of the model go out together, so that its next claim may wait for more of them."""
        return self._batching.gathers(model)

    def start(self, grants: Sequence[Grant], claimed: ClaimedGrants) -> None:
        """Begins the calls for the grants of one claim; they go out when the event loop is free."""
        for together, batch in self._batching.calls(grants):
            for grant in together:
                self._in_flight.take(grant, claimed, batch)
                self._health.started(grant)
            self._group.create_task(self.run(*together))

    def give_back(self, grants: Sequence[Grant]) -> None:
        """Releases grants whose time cannot be told, since the clock of the database has stepped."""
        for grant in grants:
            self._in_flight.take(grant)
            self._flusher.put(Settlement(grant, Release("clock_step"), None, None))

    async def run(self, *grants: Grant) -> None:
        """Sends grants of one claim and one model in one call.

        Settles each of them exactly once, whatever happens; raises only cancellation.
        """
        task = asyncio.current_task()
        self._tasks.add(task)
        try:
            await self._run(grants)
        finally:
            self._tasks.discard(task)
            for grant in grants:
                self._health.ended(grant)

    def cancel(self) -> int:
        """Ends all calls that are under way; each still settles its grants. Returns how many there are.

        To be called until there are none: an adapter may swallow it.
        """
        self._is_over = True
        for task in self._tasks:
            if task is not None:
                task.cancel()
        return len(self._tasks)

    async def _run(self, grants: Sequence[Grant]) -> None:
        noted = sending.Sending(min(grant.send_before for grant in grants))
        sending.current.set(noted)
        attempts: list[_Attempt] = []
        for grant in grants:
            task = grant.task
            if task.unreadable is not None:
                self._flusher.put(_end(grant, noted, Bury("unreadable_task", task.unreadable)))
            else:
                attempts.append(_Attempt(grant, None if task.tokens is None else estimate_input_tokens(task.prompt)))
        try:
            if self._is_over:
                raise asyncio.CancelledError  # begun after cancel()
            decisions = await self._decide(attempts, noted)
        except anyio.get_cancelled_exc_class():
            # The drain is over. What was not sent goes back whole; a call that was may have been paid and counts.
            stopped = Retry("worker_stopped", "the worker stopped before the answer came", 0.0, counts=True)
            end = stopped if noted.sent_at is not None else Release("worker_stopped")
            for attempt in attempts:
                self._flusher.put(_end(attempt.grant, noted, end, attempt.estimate))
            raise
        for attempt, decision in zip(attempts, decisions, strict=True):
            self._flusher.put(_end(attempt.grant, noted, decision, attempt.estimate))

    async def _decide(self, attempts: list[_Attempt], noted: sending.Sending) -> list[Decision]:
        """Returns what becomes of each attempt. Those that cannot be charged leave the list, settled."""
        try:
            await self._charge(attempts, noted)
            if not attempts:
                return []
            grants = [attempt.grant for attempt in attempts]
            replies = await self._send(grants, noted)
            blames = self._health.judge(grants, replies)
            return [
                policy.decide(reply, blame, grant.task.attempt_no, self._rng)
                for grant, reply, blame in zip(grants, replies, blames, strict=True)
            ]
        except sending.LateGrant:
            return [LATE] * len(attempts)
        except Exception as error:  # noqa: BLE001 - an adapter's bug is this attempt's end, not the worker's
            broken = _broken(error, attempts[0].grant.model)
            return [policy.decide(broken, "attempt", attempt.grant.task.attempt_no, self._rng) for attempt in attempts]

    async def _charge(self, attempts: list[_Attempt], noted: sending.Sending) -> None:
        """Gives back the tasks that the quota of tokens does not suffice for; the others go on.

        Of several, those that need more when half of the time is gone are given back too: all would be late.
        """
        half = (attempts[0].grant.granted_at + noted.send_before) / 2 if len(attempts) > 1 else math.inf
        for attempt in list(attempts):
            need = _lacks(attempt)
            if need is None or (time.monotonic() < half and await self._is_raised(attempt.grant, need)):
                continue
            attempts.remove(attempt)
            self._flusher.put(_end(attempt.grant, noted, Release("tokens"), attempt.estimate))

    async def _is_raised(self, grant: Grant, need: int) -> bool:
        """Raises a charge that is clearly too low.

        If it cannot be raised now, or if that is not known, the task goes back unsent. The time of the grant goes on
        meanwhile: the check before the first byte holds as ever.
        """
        async with self._topping_up:
            if time.monotonic() > grant.send_before:
                return True  # it is too late anyway, and ends as an expired grant
            try:
                return await self._top_up(grant.task.fence, need)
            except LlmqueueError:
                return False  # whether it was raised is not known; a release gives back what was charged

    async def _send(self, grants: Sequence[Grant], noted: sending.Sending) -> Sequence[Reply]:
        if time.monotonic() > noted.send_before:
            return [Late()] * len(grants)
        timeout_s = grants[0].timeout_s
        calls = [
            Call(grant.model, grant.task.prompt, grant.task.params, grant.task.idempotency_key, timeout_s)
            for grant in grants
        ]
        replies: Sequence[object] = ()
        has_ended = False
        with suppress(TimeoutError), anyio.CancelScope(deadline=anyio.current_time() + timeout_s):
            if len(calls) == 1:
                replies = [await self._backend.call(calls[0])]
            else:
                replies = await cast(BatchBackend, self._backend).call_batch(calls)
            has_ended = True
        if not has_ended:
            if noted.sent_at is None:
                return [Late()] * len(grants)
            return [TransientError("timeout", f"no answer within {timeout_s:.0f} s")] * len(grants)
        if len(replies) != len(calls):
            raise TypeError(f"{len(replies)} replies to {len(calls)} calls")
        return [reply if isinstance(reply, Reply) else _no_reply(reply) for reply in replies]


def _end(grant: Grant, noted: sending.Sending, decision: Decision, estimate: int | None = None) -> Settlement:
    if noted.sent_at is None:
        return Settlement(grant, decision, None, None, estimate)
    return Settlement(grant, decision, noted.sent_at - grant.granted_at, time.monotonic() - noted.sent_at, estimate)


def _lacks(attempt: _Attempt) -> int | None:
    """Returns what the prompt's input must be charged when it is charged clearly too little, else None."""
    charged = attempt.grant.task.input_charge
    if attempt.estimate is None or charged is None:
        return None
    need = min(math.ceil(attempt.estimate * (attempt.grant.char_class_ratio or 1.0)), MOST_TOKENS)
    return None if need <= TOP_UP_FROM * charged or need < charged + TOP_UP_FROM_TOKENS else need


def _no_reply(returned: object) -> TransientError:
    return TransientError("adapter_raised", f"the adapter returned {type(returned).__name__}, which is no reply")


def _broken(error: Exception, model: str) -> TransientError:
    # Neither its message nor its traceback: they may quote the prompt. `tasks show` has the message.
    frame = traceback.extract_tb(error.__traceback__)[-1]
    where = f"{frame.filename}:{frame.lineno}"
    logger().error(Event.ADAPTER_RAISED, model=model, error_class=type(error).__name__, where=where)
    return TransientError("adapter_raised", f"{type(error).__name__} at {where}: {error}"[:300])
