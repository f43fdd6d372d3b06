"""A backend that answers at once, in the worker's own process: what is left is the queue.

LLMQUEUE_BACKEND=bench.noop:backend
"""

from __future__ import annotations

from collections.abc import Sequence

from llmqueue.backend import Call, sending
from llmqueue.models import Answer, Reply, Usage

ANSWER = Answer("42", Usage(1, 1))


class Noop:
    """Grants are checked as in any call."""

    async def call(self, _call: Call) -> Reply:
        sending.send_now()
        return ANSWER

    async def call_batch(self, calls: Sequence[Call]) -> Sequence[Reply]:
        sending.send_now()
        return [ANSWER] * len(calls)

    async def probe(self) -> str | None:
        return None

    async def aclose(self) -> None:
        return None


def backend(_base_url: str, _secret: str | None) -> Noop:
    return Noop()
