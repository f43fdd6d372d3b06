"""A window that slides over the calls of one model and always counts the most that it can have held.

A call sent at an unknown moment of [lo, hi] can be in the window (t - 60, t] if lo <= t and hi > t - 60, because then
one of these moments lies in the window. So the number of calls that meet both conditions is an upper bound for this
window over all placements, and some placement reaches it: put each call at such a moment. (Two windows need not reach
their bounds at once, because a call is sent only once.) The same holds for the sum of their charges. A call sent at a
known moment is the case lo = hi.

As t grows, a call enters at lo and leaves at hi + 60. The content of the window grows only when a call enters, so the
windows that end at some lo suffice to find the worst.
"""

from __future__ import annotations

from bisect import bisect_left
from heapq import heappop, heappush
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from llmqueue.audit.calls import Call


class Member:
    """A call in the window. `no` is its number in the order of grants; charges are a pair: tokens, output tokens."""

    __slots__ = ("call", "charged", "final", "has_charge", "held", "hi_us", "lo_us", "no")

    def __init__(self, call: Call, no: int, lo_us: int, hi_us: int) -> None:
        self.call = call
        self.no = no
        self.lo_us = lo_us
        self.hi_us = hi_us
        self.charged = (call.tokens or 0, call.output_tokens or 0)
        self.final = (
            self.charged[0] if call.tokens_final is None else call.tokens_final,
            self.charged[1] if call.output_tokens_final is None else call.output_tokens_final,
        )
        self.held = self.charged
        self.has_charge = any(self.charged) or any(self.final)


class Sums:
    """Sums over the members for one kind: held charges, corrected charges, and the excess of these over the charges."""

    __slots__ = ("final", "held", "overshoot")

    def __init__(self) -> None:
        self.held = self.final = self.overshoot = 0


class SlidingWindow:
    """The calls that may lie in (t - length, t]. Call `move`, then `enter`, with times that never fall."""

    def __init__(self, length_us: int, slack_us: int) -> None:
        """`slack_us`: how long before its recorded end a grant may have seen an attempt as settled."""
        self._length_us = length_us
        self._slack_us = slack_us
        self._exits: list[tuple[int, int, Member]] = []
        self._settlements: list[tuple[int, int, Member]] = []
        # The members that can become the newest: each was granted before its predecessor here and leaves after it.
        self._newest: list[Member] = []
        self.sums = (Sums(), Sums())

    def __len__(self) -> int:
        return len(self._exits)

    @property
    def members(self) -> list[Member]:
        return [member for _, _, member in self._exits]

    @property
    def newest(self) -> Call | None:
        """The member that was granted last."""
        return self._newest[0].call if self._newest else None

    def move(self, now_us: int) -> None:
        """Moves the end of the window to `now_us`."""
        start_us = now_us - self._length_us
        while self._exits and self._exits[0][0] <= start_us:
            member = heappop(self._exits)[2]
            if member.has_charge:
                self._add(member, -1)
        while self._newest and self._newest[0].hi_us <= start_us:
            del self._newest[0]
        while self._settlements and self._settlements[0][0] <= now_us:
            member = heappop(self._settlements)[2]
            if member.hi_us > start_us:
                self._add(member, -1)
                _settle(member)
                self._add(member, 1)

    def enter(self, member: Member) -> None:
        """Adds a call with its full charge, at its `lo`."""
        heappush(self._exits, (member.hi_us, member.no, member))
        self._note_newest(member)
        if not member.has_charge:
            return
        ended_us = member.call.ended_us
        if ended_us is not None and member.final != member.charged:
            # not before it was sent: until then no grant can have seen it settled
            settled_us = max(ended_us - self._slack_us, member.lo_us + 1)
            heappush(self._settlements, (settled_us, member.no, member))
        self._add(member, 1)

    def _note_newest(self, member: Member) -> None:
        found = self._newest
        at = bisect_left(found, member.hi_us, key=_leaves)
        if at < len(found) and found[at].no > member.no:
            return  # another member was granted later and stays as long
        if at < len(found) and found[at].hi_us == member.hi_us:
            del found[at]
        first = at
        while first > 0 and found[first - 1].no < member.no:
            first -= 1
        found[first:at] = [member]

    def _add(self, member: Member, sign: int) -> None:
        for sums, held, charged, final in zip(self.sums, member.held, member.charged, member.final, strict=True):
            sums.held += sign * held
            sums.final += sign * final
            if final > charged:
                sums.overshoot += sign * (final - charged)


def _settle(member: Member) -> None:
    """From its settlement on, a call counts with its corrected charge if that is less, as in the ledger."""
    charged, final = member.charged, member.final
    member.held = (min(charged[0], final[0]), min(charged[1], final[1]))


def _leaves(member: Member) -> int:
    return member.hi_us
