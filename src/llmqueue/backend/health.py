"""Whether the backend may be called, and how much: closed while it cannot be reached, narrow while it fails.

Nothing is claimed while it is closed, so an outage is one line in the log and not one per task (design I11). The first
call that finds no connection closes it, a probe opens it. A backend that is there and fails its calls is the circuit's
matter (circuit_breaker.py): then single calls try it.
"""

from __future__ import annotations

import random
import time
from collections.abc import Sequence
from dataclasses import dataclass

import anyio

from llmqueue.backend import Backend, BatchBackend, circuit_breaker
from llmqueue.backend.circuit_breaker import CircuitBreaker, Failed
from llmqueue.db.listen import WakeSignal
from llmqueue.logs import Event, logger
from llmqueue.types import Grant, Late, Reply, Throttled, TransientError, Unreachable

PROBE_S = (0.25, 10.0)
# An adapter whose probe() hangs would else keep the gate closed without a word. Our own end by themselves.
PROBE_TIMEOUT_S = 15.0
# Open for that long without a refused connection: the next outage is a new one.
STEADY_S = 10.0


@dataclass(frozen=True, slots=True)
class Trouble:
    """What the backend does that keeps this worker from calling it; `since` in seconds of time.monotonic()."""

    what: str
    since: float


class BackendHealth:
    """at_most() says how many calls may go out; the wake rings when that becomes more."""

    def __init__(self, backend: Backend, url: str, wake: WakeSignal) -> None:
        self._backend = backend
        self._url = url
        self._wake = wake
        self._closed = anyio.Event()
        self._unreachable: Trouble | None = None
        self._failing: Trouble | None = None
        self.circuit = CircuitBreaker(random.Random())
        self.is_open = False

    @property
    def can_batch(self) -> bool:
        """Tells whether a call may carry several tasks."""
        return isinstance(self._backend, BatchBackend)

    @property
    def trouble(self) -> Trouble | None:
        return self._unreachable or self._failing

    def at_most(self, wanted: int) -> int:
        """Returns how many of `wanted` calls may be started now."""
        if not self.is_open:
            return 0
        leave = self.circuit.leave(time.monotonic())
        return wanted if leave is None else min(wanted, leave)

    def started(self, grant: Grant) -> None:
        self.circuit.started(grant.task.fence, time.monotonic())

    def ended(self, grant: Grant) -> None:
        """Call at the end of an attempt, after judge() if it had a reply."""
        self.circuit.ended(grant.task.fence)

    def judge(self, grant: Grant, reply: Reply, others: Sequence[Grant] = ()) -> circuit_breaker.Blame:
        """Returns whose fault a failure is, and remembers how the call went; `others` are in the same call."""
        now = time.monotonic()
        match reply:
            case Unreachable():
                self.close()
            case TransientError(error_class) if circuit_breaker.blames(error_class):
                fences = tuple(other.task.fence for other in others)
                return self._failed(Failed(grant.model, grant.task.fence, grant.granted_at, error_class, fences), now)
            case Late() | Throttled() | TransientError("timeout"):
                pass  # nothing was sent, it is the model's, or one slow prompt: says nothing about the backend
            case _:
                self._succeeded(grant, now)
        return "attempt"

    def _failed(self, call: Failed, now: float) -> circuit_breaker.Blame:
        was_closed = self.circuit.because is None
        blame = self.circuit.failed(call, now)
        if was_closed and self.circuit.because is not None:
            self._failing = Trouble(
                f"fails its calls: half of the last {circuit_breaker.WINDOW}, the last with {call.error_class}", now
            )
            logger().error(
                Event.BACKEND_FAILING,
                url=self._url,
                error_class=call.error_class,
                effect="one call at a time tries it; what fails meanwhile costs no attempt",
            )
        return blame

    def _succeeded(self, grant: Grant, now: float) -> None:
        was_closed = self.circuit.is_closed
        self.circuit.succeeded(grant.model, grant.task.fence, now)
        if self._failing is not None and self.circuit.because is None:
            self._failing = None
            logger().info(Event.BACKEND_BACK, url=self._url)
        if not was_closed:
            self._wake.set("config")

    def close(self) -> None:
        if self.is_open:
            self.is_open = False
            self._closed.set()

    async def run(self) -> None:
        """Probes while closed, sleeps while open. Never returns."""
        pause_s = PROBE_S[0]
        while True:
            reason = await probe(self._backend)
            if reason is not None:
                await self._until_reachable(reason)
                self.circuit.go_slowly()
            opened_at = time.monotonic()
            self._closed = anyio.Event()
            self.is_open = True
            self._wake.set("config")
            await self._closed.wait()
            # A backend that takes the probe and refuses the calls: opened ever more slowly, or it would be a storm.
            pause_s = PROBE_S[0] if time.monotonic() - opened_at > STEADY_S else min(2 * pause_s, PROBE_S[1])
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
