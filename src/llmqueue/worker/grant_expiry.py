"""Notices that no grant can be sent in time, says so, and slows the claims down.

A grant lives for two fifths of the guard from the moment it was made (design I3). Where a claim itself takes longer,
every grant is late when it arrives: tasks would be claimed and given back for ever, and the worker would look busy.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

from llmqueue.logs import Event, logger
from llmqueue.types import LATE, Grant, Settlement

CLAIMS = 10
PAUSE_S = (1.0, 10.0)
# A late grant is given back at once; one that has not been by then was sent.
JUDGED_AFTER_S = 1.0
REMIND_S = 60.0


@dataclass(slots=True)
class _Claim:
    fences: set[int]  # whose grants have not come back late
    at: float
    seconds: float
    is_in_time: bool = False


class GrantExpiry:
    """Knows the last claims that had grants, and what became of these."""

    def __init__(self) -> None:
        self._claims: deque[_Claim] = deque(maxlen=CLAIMS)
        self._pause_s = PAUSE_S[0]
        self._until = -math.inf
        self._said_at = -math.inf
        self._has_tried = True

    @property
    def paused_until(self) -> float:
        return self._until

    def claimed(self, grants: Sequence[Grant], now: float, seconds: float) -> None:
        if grants:
            self._has_tried = True
            self._claims.append(_Claim({grant.task.fence for grant in grants}, now, seconds))

    def ended(self, settlement: Settlement) -> None:
        fence = settlement.grant.task.fence
        for claim in reversed(self._claims):  # most ends are of the last claims
            if fence in claim.fences:
                if settlement.decision == LATE:
                    claim.fences.discard(fence)
                else:
                    claim.is_in_time = True
                return

    def is_paused(self, now: float) -> bool:
        """Whether to claim nothing now; call before each claim."""
        if now < self._until:
            return True
        if not self._has_tried:
            return False  # the pause is over: the next claim with grants tells whether it goes on
        open_claims = [claim for claim in self._claims if claim.fences]
        is_in_time = any(claim.is_in_time or now >= claim.at + JUDGED_AFTER_S for claim in open_claims)
        if len(self._claims) < CLAIMS or is_in_time or len(open_claims) > 1:
            self._pause_s = PAUSE_S[0]
            return False
        if open_claims:
            self._until = open_claims[0].at + JUDGED_AFTER_S  # the last one's grants may still be given back
            return True
        self._say(now)
        self._until = now + self._pause_s
        self._pause_s = min(2 * self._pause_s, PAUSE_S[1])
        self._has_tried = False
        return True

    def _say(self, now: float) -> None:
        if now - self._said_at < REMIND_S:
            return
        self._said_at = now
        logger().warning(
            Event.GRANTS_LATE,
            error="every grant runs out before it can be sent",
            claim_s=round(self._claims[-1].seconds, 3),
            effect="claiming ever more rarely, down to once in 10 s",
            remedy="is the index llmqueue_ready there (llmqueue init), is the database slow? or raise LLMQUEUE_GUARD_S",
        )
