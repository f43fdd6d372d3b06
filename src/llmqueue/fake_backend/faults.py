"""Faults on request: drawn per call by rates, or forced by a marker inside the prompt.

A marker makes a test deterministic:

    [[fault:500]]         this status, any from 400 to 599; 429, 503 and 529 carry Retry-After
    [[fault:hang]]        no reply until the client leaves
    [[fault:reset]]       the connection is reset after the call's latency
    [[fault:unreadable]]  200 with broken JSON
    [[fault:redirect]]    307 to the same path, which would answer
    [[fault:error-inside]]  200 with {"error": …} instead of an answer
    [[fault:no-answer]]   200 with JSON that has no answer
    [[fault:other-key]]   200 with an answer and the Idempotency-Key of another call
    [[fault:bomb]]        200 with 100 kB of gzip that expand to 100 MB
    [[fault:endless]]     200 with an answer that never ends, as fast as it is read
    [[fault:drip]]        200 with an answer that never ends, a byte every 50 ms
    [[fault:500 x2]]      only the first two calls with this prompt

Several markers act one after the other: `[[fault:500 x2]][[fault:429 x1]]` fails twice with 500, then once with 429,
then answers. A call over the limit does not use up a marker, and every fault except 429 counts against the limit. In a
batch, a fault that is a status is the error of its item; any other fault applies to the whole batch.
"""

import re
from collections import Counter
from dataclasses import dataclass
from itertools import accumulate
from random import Random

from llmqueue.fake_backend.answers import Json, canonical_text, texts_in

BROKEN = ("reset", "unreadable", "redirect", "error-inside", "no-answer", "other-key", "bomb", "endless", "drip")
_MARKER = re.compile(rf"\[\[fault:([45]\d\d|hang|{'|'.join(BROKEN)})(?: x(\d+))?\]\]")


@dataclass(frozen=True, slots=True)
class FaultRates:
    """The shares of calls (0 to 1, together at most 1) that end in each fault."""

    error_rate: float = 0.0  # 500
    unavailable_rate: float = 0.0  # 503 with Retry-After
    hang_rate: float = 0.0  # no reply until the client leaves
    reset_rate: float = 0.0  # the connection is reset
    unreadable_rate: float = 0.0  # 200 with broken JSON

    def __post_init__(self) -> None:
        """Raises ValueError on a rate outside 0 to 1 or a sum above 1."""
        for _, name, rate in self._named():
            if not 0 <= rate <= 1:
                raise ValueError(f"{name} must be between 0 and 1, not {rate:g}")
        # 0.1 + 0.2 + 0.7 is a little more than 1 in binary
        if (total := sum(rate for _, _, rate in self._named())) > 1 + 1e-9:
            raise ValueError(f"the fault rates add up to {total:g}, more than 1")

    def draw(self, rng: Random) -> str | None:
        """Returns a random fault, or None."""
        named = self._named()
        point = rng.random()
        for (fault, _, _), bound in zip(named, accumulate(rate for _, _, rate in named), strict=True):
            if point < bound:
                return fault
        return None

    def _named(self) -> tuple[tuple[str, str, float], ...]:
        return (
            ("500", "error_rate", self.error_rate),
            ("503", "unavailable_rate", self.unavailable_rate),
            ("hang", "hang_rate", self.hang_rate),
            ("reset", "reset_rate", self.reset_rate),
            ("unreadable", "unreadable_rate", self.unreadable_rate),
        )


class ForcedFaults:
    """Finds markers inside prompts and counts the calls with each marked prompt."""

    def __init__(self) -> None:
        self._calls: Counter[str] = Counter()

    def next_fault(self, prompt: Json) -> str | None:
        """Returns the forced fault of this call, or None; counts the call if its prompt has a marker."""
        markers = [marker for text in texts_in(prompt) for marker in _MARKER.finditer(text)]
        if not markers:
            return None
        prompt_text = canonical_text(prompt)
        earlier_calls = self._calls[prompt_text]
        self._calls[prompt_text] += 1
        for marker in markers:
            if marker[2] is None or earlier_calls < int(marker[2]):
                return marker[1]
            earlier_calls -= int(marker[2])
        return None
