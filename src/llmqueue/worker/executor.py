"""One call: send its tasks while their grants are good, decide what the reply means, hand the ends to the flusher."""

from __future__ import annotations

import asyncio
import math
import random
import time
import traceback
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from typing import cast

import anyio

from llmqueue.backend import Backend, BatchBackend, Call, circuit_breaker, sending
from llmqueue.backend.health import BackendHealth
from llmqueue.errors import LlmqueueError
from llmqueue.estimate import estimate_input_tokens
from llmqueue.logs import Event, logger
from llmqueue.types import (
    LATE,
    Answer,
    Bury,
    Decision,
    Grant,
    Late,
    PermanentError,
    Release,
    Reply,
    Retry,
    Settlement,
    TransientError,
    value,
)
from llmqueue.worker import policy
from llmqueue.worker.batching import NO_SUCH_CALL

Settle = Callable[[Settlement], None]
# top_up(fence, input_charge): False when the charge cannot be raised to that now
TopUp = Callable[[int, int], Awaitable[bool]]

# The charge by bytes is good enough within this: a statement more per task would cost more than it is worth.
TOP_UP_FROM = 1.25
TOP_UP_FROM_TOKENS = 16
# what an integer column takes
MOST_TOKENS = 2**31 - 1


@value
class _Attempt:
    """A grant that is to be sent, with our estimate of its input tokens; None: the model has no limit on tokens."""

    grant: Grant
    estimate: int | None


class Executor:
    """Runs attempts. `settle` must not block: an attempt that has its answer ends."""

    def __init__(
        self, backend: Backend, gate: BackendHealth, settle: Settle, top_up: TopUp, rng: random.Random
    ) -> None:
        self._backend = backend
        self._health = gate
        self._settle = settle
        self._top_up = top_up
        self._topping_up = anyio.Lock()  # one at a time: claims and flushes need connections too
        self._tasks: set[asyncio.Task[None] | None] = set()
        self._is_over = False
        self._rng = rng

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
                self._settle(_end(grant, noted, Bury("unreadable_task", task.unreadable)))
            else:
                attempts.append(_Attempt(grant, None if task.tokens is None else estimate_input_tokens(task.prompt)))
        try:
            if self._is_over:
                raise asyncio.CancelledError  # begun after cancel()
            decisions = await self._decide(attempts, noted)
        except anyio.get_cancelled_exc_class():
            # Drain is over. What was never sent goes back whole; what was may have been paid and counts.
            stopped = Retry("worker_stopped", "the worker stopped before the answer came", 0.0, counts=True)
            end = stopped if noted.sent_at is not None else Release("worker_stopped")
            for attempt in attempts:
                self._settle(_end(attempt.grant, noted, end, attempt.estimate))
            raise
        for attempt, decision in zip(attempts, decisions, strict=True):
            self._settle(_end(attempt.grant, noted, decision, attempt.estimate))

    async def _decide(self, attempts: list[_Attempt], noted: sending.Sending) -> list[Decision]:
        """Returns what becomes of each attempt. Those that cannot be charged leave the list, settled."""
        try:
            await self._charge(attempts, noted)
            if not attempts:
                return []
            return self._judge(attempts, await self._send([attempt.grant for attempt in attempts], noted))
        except sending.LateGrant:
            return [LATE] * len(attempts)
        except Exception as error:  # noqa: BLE001 - an adapter's bug is this attempt's end, not the worker's
            broken = _broken(error, attempts[0].grant.model)
            return [policy.decide(broken, attempt.grant.task.attempt_no, self._rng) for attempt in attempts]

    def _judge(self, attempts: Sequence[_Attempt], replies: Sequence[Reply]) -> list[Decision]:
        """A call is one success or one failure of the backend's, however many tasks it carries."""
        grants = [attempt.grant for attempt in attempts]
        whole = replies[0] if len(replies) > 1 and all(reply is replies[0] for reply in replies) else None
        if isinstance(whole, PermanentError):
            # Due to one of them, which nobody knows: each is tried alone. Or the backend has no such call.
            self._health.judge(grants[0], whole)
            counts = whole.error_class not in NO_SUCH_CALL
            return [Retry(whole.error_class, whole.message, 0.0, counts=counts)] * len(attempts)
        blame = self._blame(grants, replies)
        return [
            policy.decide(reply, grant.task.attempt_no, self._rng, blame if _is_blamed(reply) else "attempt")
            for grant, reply in zip(grants, replies, strict=True)
        ]

    def _blame(self, grants: Sequence[Grant], replies: Sequence[Reply]) -> circuit_breaker.Blame:
        """Returns whose fault those are that failed, if any did."""
        ended = list(zip(grants, replies, strict=True))
        failed = [(grant, reply) for grant, reply in ended if _is_blamed(reply)]
        others = [(grant, reply) for grant, reply in ended if not _is_blamed(reply)]
        if others:
            self._health.judge(*next((one for one in others if isinstance(one[1], Answer)), others[0]))
        return self._health.judge(*failed[0], others=[grant for grant, _ in failed[1:]]) if failed else "attempt"

    async def _charge(self, attempts: list[_Attempt], noted: sending.Sending) -> None:
        """Gives back what its quota does not suffice for; the others go on.

        Of several, those that need more when half of the time is gone are given back too: all would be late.
        """
        half = (attempts[0].grant.granted_at + noted.send_before) / 2 if len(attempts) > 1 else math.inf
        for attempt in list(attempts):
            need = _lacks(attempt)
            if need is None or (time.monotonic() < half and await self._is_raised(attempt.grant, need)):
                continue
            attempts.remove(attempt)
            self._settle(_end(attempt.grant, noted, Release("tokens"), attempt.estimate))

    async def _is_raised(self, grant: Grant, need: int) -> bool:
        """Raises a charge that is clearly too low.

        One that cannot be raised now, or of which that is not known, means that the task goes back unsent. The time of
        the grant goes on meanwhile: the check before the first byte holds as ever.
        """
        async with self._topping_up:
            if time.monotonic() > grant.send_before:
                return True  # too late anyway, and that is what it is called
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


def _is_blamed(reply: Reply) -> bool:
    return isinstance(reply, TransientError) and circuit_breaker.blames(reply.error_class)


def _no_reply(said: object) -> TransientError:
    return TransientError("adapter_raised", f"the adapter returned {type(said).__name__}, which is no reply")


def _broken(error: Exception, model: str) -> TransientError:
    # Neither its message nor its traceback: they may quote the prompt. `tasks show` has the message.
    frame = traceback.extract_tb(error.__traceback__)[-1]
    where = f"{frame.filename}:{frame.lineno}"
    logger().error(Event.ADAPTER_RAISED, model=model, error_class=type(error).__name__, where=where)
    return TransientError("adapter_raised", f"{type(error).__name__} at {where}: {error}"[:300])
