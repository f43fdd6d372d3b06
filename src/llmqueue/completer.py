"""Writes ends of attempts to the database, many in one statement, and never loses one.

A flush starts 20 ms after its first end, or at 200; while one is under way the next collects. If the database is away
the ends wait here, and go out when it is back.
"""

from __future__ import annotations

import json
import math
import random
import time
from collections import deque
from collections.abc import Callable
from dataclasses import replace

import anyio

from llmqueue.errors import DatabaseUnreachable, SqlError
from llmqueue.logs import Event, logger
from llmqueue.models import Bury, Complete, Release, Retry, Settlement
from llmqueue.store import Store

LINGER_S = 0.02
MAX_FLUSH = 200
# A flush carries answers: one of 10 MB must not make a statement of 2 GB.
MAX_FLUSH_CHARS = 8_000_000
RETRY_S = (0.2, 1.0)
# Somebody's open transaction holds the task's row: asked again at this pace, which costs nobody anything.
BUSY_S = 0.5
# All calls in flight may be refused at once, and each would say it.
CLOSING_SAID_S = 10.0


class Completer:
    """`on_settled(settlement)` is called once the end of an attempt is safe in the database."""

    def __init__(self, store: Store, on_settled: Callable[[Settlement], None]) -> None:
        self._store = store
        self._on_settled = on_settled
        self._waiting: deque[Settlement] = deque()
        self._held: deque[Settlement] = deque()
        self._held_until = 0.0
        self._flush_size = MAX_FLUSH
        self._pause_s = RETRY_S[0]
        self._arrived = anyio.Event()
        self._closing_said_at: dict[str, float] = {}

    def put(self, settlement: Settlement) -> None:
        self._waiting.append(settlement)
        self._arrived.set()

    @property
    def unsettled(self) -> int:
        return len(self._waiting) + len(self._held)

    async def run(self) -> None:
        """Flushes for ever."""
        while True:
            # New ends never wait for held ones: those come along when their pause is over.
            with anyio.move_on_after(BUSY_S if self._held else None):
                await self._arrived.wait()
            if time.monotonic() >= self._held_until:
                self._release_held()
            if len(self._waiting) < MAX_FLUSH:
                await anyio.sleep(LINGER_S)
            self._arrived = anyio.Event()
            while self._waiting:
                await self._flush()

    async def drain(self, timeout_s: float) -> int:
        """Flushes what is left for at most `timeout_s`. Returns how many ends could not be written."""
        with anyio.move_on_after(timeout_s):
            while self.unsettled:
                self._release_held()
                while self._waiting:
                    await self._flush()
                if self._held:
                    await anyio.sleep(BUSY_S / 5)
        return self.unsettled

    def _release_held(self) -> None:
        self._waiting.extend(self._held)
        self._held.clear()
        if self._waiting:
            self._arrived.set()

    async def _flush(self) -> None:
        batch = self._take()
        try:
            # Shielded: a flush cut off half-way would be sent again, which is harmless but slow at a stop.
            with anyio.CancelScope(shield=True):
                outcomes = await self._store.settle(batch)
        except DatabaseUnreachable as error:
            self._store.outage.began(error)
            self._waiting.extendleft(reversed(batch))
            await self._pause()
            return
        except SqlError as error:
            logger().error(Event.SETTLE_FAILED, error_class=error.sqlstate, attempts=len(batch))
            await self._put_off(batch, error)
            return
        except BaseException:
            self._waiting.extendleft(reversed(batch))
            raise
        self._store.outage.ended()
        self._pause_s = RETRY_S[0]
        self._flush_size = min(MAX_FLUSH, 2 * self._flush_size)
        for settlement in batch:
            self._settled(settlement, outcomes.get(settlement.grant.task.fence, "unknown"))

    async def _put_off(self, batch: list[Settlement], error: SqlError) -> None:
        """Halves a flush that holds a value which cannot be stored, down to the end that is at fault.

        That one will not get better: it is buried with a word that can be written. Anything else (no right, no
        function) may be mended and is waited for, together with what arrives meanwhile: if others go through where it
        fails, settle() knows that the row is at fault (docs/decisions.md, 22).
        """
        if is_about_data(error) and len(batch) == 1:
            buried = Bury("unstorable_answer", "the database cannot take it: " + str(error))
            batch = [replace(batch[0], decision=buried)]
        elif is_about_data(error):
            self._flush_size = len(batch) // 2
        self._waiting.extendleft(reversed(batch))
        if not is_about_data(error):
            await self._pause()

    async def _pause(self) -> None:
        await anyio.sleep(random.uniform(self._pause_s / 2, self._pause_s))
        self._pause_s = min(2 * self._pause_s, RETRY_S[1])

    def _take(self) -> list[Settlement]:
        batch: list[Settlement] = []
        chars = 0
        while self._waiting and len(batch) < self._flush_size and chars < MAX_FLUSH_CHARS:
            settlement = self._waiting.popleft()
            batch.append(settlement)
            decision = settlement.decision
            if isinstance(decision, Complete):
                chars += len(decision.answer) if isinstance(decision.answer, str) else len(json.dumps(decision.answer))
        return batch

    def _settled(self, settlement: Settlement, outcome: str) -> None:
        if outcome == "busy":
            if not self._held:
                self._held_until = time.monotonic() + BUSY_S
            self._held.append(settlement)
            return
        log_attempt(settlement, outcome)
        self._log_closing(settlement)
        self._on_settled(settlement)

    def _log_closing(self, settlement: Settlement) -> None:
        """One line for all the calls that a model refuses at about the same time."""
        decision, model = settlement.decision, settlement.grant.model
        if not isinstance(decision, Retry) or decision.refusal is None:
            return
        now = time.monotonic()
        if now - self._closing_said_at.get(model, -math.inf) < CLOSING_SAID_S:
            return
        self._closing_said_at[model] = now
        logger().warning(Event.MODEL_CLOSED, model=model, pause_s=decision.pause_s, because=decision.error_class)


def is_about_data(error: SqlError) -> bool:
    """Tells a value that cannot be stored (data exception, program limit exceeded) from trouble that may pass."""
    return error.sqlstate[:2] in {"22", "54"}


def log_attempt(settlement: Settlement, outcome: str) -> None:
    """One INFO line per attempt, with all that is known about it but its words.

    Errors are named by class only: a backend's message may quote the prompt. `tasks show` has the text.
    """
    task, decision = settlement.grant.task, settlement.decision
    fields: dict[str, object] = {
        "task": str(task.id),
        "model": settlement.grant.model,
        "attempt": task.attempt_no,
        "fence": task.fence,
        "outcome": outcome,
    }
    if settlement.sent_after_s is not None:
        fields["sent_after_ms"] = round(settlement.sent_after_s * 1000, 1)
    if settlement.latency_s is not None:
        fields["latency_s"] = round(settlement.latency_s, 3)
    match decision:
        case Complete(usage=usage):
            fields |= {"input_tokens": usage.input_tokens, "output_tokens": usage.output_tokens}
        case Retry(error_class=error_class, delay_s=delay_s, refusal=refusal):
            fields |= {"error_class": error_class}
            if refusal is None:
                fields |= {"delay_s": round(delay_s, 1)}  # else the model's pause decides
        case Bury(error_class=error_class):
            fields["error_class"] = error_class
        case Release(error_class):
            fields["error_class"] = error_class
    if outcome in {"set_aside", "unknown", "late"}:
        logger().warning(Event.ATTEMPT_ENDED, **fields)
    elif isinstance(decision, Release) and decision.error_class.startswith("unreachable"):
        logger().debug(Event.ATTEMPT_ENDED, **fields)  # an outage is one line, not one per task (I11)
    else:
        logger().info(Event.ATTEMPT_ENDED, **fields)
