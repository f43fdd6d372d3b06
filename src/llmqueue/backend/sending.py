"""The moment a call is sent: whether its grant is still good, and when it was.

A grant is worth its time only (design I3). The check happens with the connection in hand and before the first byte,
deep inside the HTTP client, so it travels there in a context variable of the attempt's own task.
"""

from __future__ import annotations

import time
from contextvars import ContextVar
from dataclasses import dataclass


class LateGrant(Exception):
    """The grant ran out before the first byte was sent."""


@dataclass(slots=True)
class Sending:
    """`send_before` and `sent_at` are seconds of time.monotonic(); `sent_at` is None until the first byte."""

    send_before: float
    sent_at: float | None = None


current: ContextVar[Sending | None] = ContextVar("llmqueue_sending", default=None)


def check() -> None:
    """Raises LateGrant if the call must not be sent any more; notes nothing yet."""
    sending = current.get()
    if sending is not None and time.monotonic() > sending.send_before:
        raise LateGrant


def send_now() -> None:
    """Notes that the first byte goes out now; raises LateGrant if it must not any more."""
    sending = current.get()
    if sending is None:
        return
    now = time.monotonic()
    if now > sending.send_before:
        raise LateGrant
    sending.sent_at = now
