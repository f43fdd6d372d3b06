"""What an adapter is. An own one is a class with these methods, named by LLMQUEUE_BACKEND=package.module:factory."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

from llmqueue.types import Json, Reply, value


@value
class Call:
    """One prompt for one model. `prompt` is text or JSON, `params` JSON or None; `timeout_s` bounds the whole call."""

    model: str
    prompt: Json
    params: Json
    idempotency_key: str
    timeout_s: float


class Backend(Protocol):
    """An adapter; one instance serves all calls of a worker at once."""

    async def call(self, call: Call) -> Reply:
        """Sends one prompt and returns how it ended. Only a bug of the adapter raises.

        It must send through `llmqueue.backend.http.client()`, or call `llmqueue.backend.sending.send_now()` itself
        right before the first byte, with the connection in hand: that is where a late grant is stopped.
        """
        ...

    async def probe(self) -> str | None:
        """Returns None when the backend can be reached, else why not. Calls no model."""
        ...

    async def aclose(self) -> None: ...


@runtime_checkable
class BatchBackend(Backend, Protocol):
    """An adapter that can send several prompts in one call."""

    async def call_batch(self, calls: Sequence[Call]) -> Sequence[Reply]:
        """Sends prompts for one model and returns how each ended, in their order.

        What the call as a whole ended with is returned as the same object for all: then it counts as one failure.
        """
        ...
