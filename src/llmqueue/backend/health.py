"""Whether the backend may be called, and how much: not at all while it cannot be reached, little while it fails.

While it cannot be reached nothing is claimed, so an outage is one line in the log and not one per task (design I11).
The first call that finds no connection ends the claims, a probe resumes them. A backend that can be reached and fails
its calls is the circuit breaker's matter (circuit_breaker.py): single calls probe it.
"""

from __future__ import annotations

import random
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import assert_never

import anyio

from llmqueue.backend import circuit_breaker
from llmqueue.backend.circuit_breaker import CircuitBreaker, Failed
from llmqueue.backend.classify import Blame, Classification, classify
from llmqueue.backend.protocol import Backend, BatchBackend
from llmqueue.db.listen import WakeSignal
from llmqueue.logs import Event, logger
from llmqueue.types import Answer, Grant, PermanentError, Reply, TransientError

PROBE_S = (0.25, 10.0)
# A third-party adapter whose probe() hangs would block silently. Built-in adapters have a timeout of their own.
PROBE_TIMEOUT_S = 15.0
# Reachable for that long without a refused connection: the next outage is a new one.
STEADY_S = 10.0


@dataclass(frozen=True, slots=True)
class Trouble:
    """What the backend does that keeps this worker from calling it; `since` in seconds of time.monotonic()."""

    what: str
    since: float


class BackendHealth:
    """at_most() tells how many calls may go out; the wake-up signal is set when that becomes more."""

    def __init__(self, backend: Backend, url: str, wake: WakeSignal) -> None:
        self._backend = backend
        self._url = url
        self._wake = wake
        self._lost = anyio.Event()
        self._unreachable: Trouble | None = None
        self._failing: Trouble | None = None
        self.breaker = CircuitBreaker(random.Random())
        self.is_reachable = False

    @property
    def can_batch(self) -> bool:
        """Tells whether a call may carry several tasks."""
        return isinstance(self._backend, BatchBackend)

    @property
    def trouble(self) -> Trouble | None:
        return self._unreachable or self._failing

    def at_most(self, wanted: int) -> int:
        """Returns how many of `wanted` calls may be started now."""
        if not self.is_reachable:
            return 0
        left = self.breaker.calls_left(time.monotonic())
        return wanted if left is None else min(wanted, left)

    def started(self, grant: Grant) -> None:
        self.breaker.started(grant.task.fence, time.monotonic())

    def ended(self, grant: Grant) -> None:
        """Call at the end of an attempt, after judge() if it had a reply."""
        self.breaker.ended(grant.task.fence)

    def judge(self, grants: Sequence[Grant], replies: Sequence[Reply]) -> list[Blame | None]:
        """Returns whose fault each reply of one call is, and remembers how the call went.

        A call is one success or one failure of the backend's, however many tasks it carries.
        """
        if len(replies) == 1:
            return [self._remember(grants[0], replies[0], classify(replies[0]))]
        if isinstance(replies[0], PermanentError) and all(one is replies[0] for one in replies):
            # Due to one of them, and it is not known to which. Or the backend has no such call.
            self._remember(grants[0], replies[0], classify(replies[0]))
            return ["call"] * len(replies)
        found = [classify(reply) for reply in replies]
        blames = [each.blame for each in found]
        failed = [no for no, each in enumerate(found) if each.evidence == "fails"]
        others = [no for no, each in enumerate(found) if each.evidence != "fails"]
        if others:
            best = next((no for no in others if isinstance(replies[no], Answer)), others[0])
            self._remember(grants[best], replies[best], found[best])
        if failed:
            fences = [grants[no].task.fence for no in failed[1:]]
            blame = self._remember(grants[failed[0]], replies[failed[0]], found[failed[0]], fences)
            for no in failed:
                blames[no] = blame
        return blames

    def _remember(self, grant: Grant, reply: Reply, found: Classification, others: Sequence[int] = ()) -> Blame | None:
        """Returns whose fault it is, seen beside the other calls; `others` are fences of the same call."""
        now = time.monotonic()
        match found.evidence:
            case "unreachable":
                self.lose()
            case "fails":
                error_class = reply.error_class if isinstance(reply, TransientError) else ""
                call = Failed(grant.model, grant.task.fence, grant.granted_at, error_class, tuple(others))
                return self._failed(call, now)
            case "silent":
                pass
            case "works":
                self._succeeded(grant, now)
            case _:
                assert_never(found.evidence)
        return found.blame

    def _failed(self, call: Failed, now: float) -> Blame:
        was_failing = self.breaker.reason is not None
        blame = self.breaker.failed(call, now)
        if not was_failing and self.breaker.reason is not None:
            self._failing = Trouble(
                f"fails its calls: half of the last {circuit_breaker.WINDOW}, the last with {call.error_class}", now
            )
            logger().error(
                Event.BACKEND_FAILING,
                url=self._url,
                error_class=call.error_class,
                effect="one call at a time probes it; failures meanwhile cost no attempt",
            )
        return blame

    def _succeeded(self, grant: Grant, now: float) -> None:
        was_closed = self.breaker.is_closed
        self.breaker.succeeded(grant.model, grant.task.fence, now)
        if self._failing is not None and self.breaker.reason is None:
            self._failing = None
            logger().info(Event.BACKEND_BACK, url=self._url)
        if not was_closed:
            self._wake.set("config")

    def lose(self) -> None:
        """A call has found no connection."""
        if self.is_reachable:
            self.is_reachable = False
            self._lost.set()

    async def run(self) -> None:
        """Probes while the backend cannot be reached, sleeps while it can. Never returns."""
        pause_s = PROBE_S[0]
        while True:
            reason = await probe(self._backend)
            if reason is not None:
                await self._until_reachable(reason)
                self.breaker.begin_slowly()
            reached_at = time.monotonic()
            self._lost = anyio.Event()
            self.is_reachable = True
            self._wake.set("config")
            await self._lost.wait()
            # A backend that takes the probe and refuses the calls is called ever more rarely, or it would be a storm.
            pause_s = PROBE_S[0] if time.monotonic() - reached_at > STEADY_S else min(2 * pause_s, PROBE_S[1])
            await anyio.sleep(random.uniform(pause_s / 2, pause_s))

    async def _until_reachable(self, reason: str) -> None:
        logger().error(
            Event.BACKEND_UNREACHABLE, url=self._url, error=reason, effect="nothing is claimed until it answers"
        )
        self._unreachable = Trouble(f"cannot be reached: {reason}", time.monotonic())
        pause_s = PROBE_S[0]
        while (still := await probe(self._backend)) is not None:
            self._unreachable = Trouble(f"cannot be reached: {still}", self._unreachable.since)
            await anyio.sleep(random.uniform(pause_s / 2, pause_s))
            pause_s = min(pause_s * 2, PROBE_S[1])
        self._unreachable = None
        logger().info(Event.BACKEND_BACK, url=self._url)


async def probe(backend: Backend) -> str | None:
    """Returns None when the backend can be reached, else why not, whatever the adapter raises, in bounded time."""
    try:
        with anyio.move_on_after(PROBE_TIMEOUT_S):
            return await backend.probe()
        return f"its probe did not end within {PROBE_TIMEOUT_S:.0f} s"
    except Exception as error:  # noqa: BLE001 - an adapter's bug must not end the worker; it is shown as the reason
        return f"{type(error).__name__}: {error}"
