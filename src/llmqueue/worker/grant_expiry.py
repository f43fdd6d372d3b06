"""Notices that no grant can be sent in time, logs it, and slows the claims down.

A grant lives for two fifths of the guard from the moment it was made (design I3). Where a claim itself takes longer,
every grant has expired when it arrives: tasks would be claimed and given back for ever, and the worker would look busy.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass

from llmqueue.logs import Event, logger

CLAIMS = 10
PAUSE_S = (1.0, 10.0)
# A late grant is given back at once; one that has not been by then was sent.
JUDGED_AFTER_S = 1.0
REMIND_S = 60.0


@dataclass(slots=True)
class ClaimedGrants:
    """The grants of one claim, made at `at` within `seconds`; `not_late` of them have not come back late."""

    not_late: int
    at: float
    seconds: float
    is_in_time: bool = False

    def ended(self, *, is_late: bool) -> None:
        """Call once for each of its grants."""
        if is_late:
            self.not_late -= 1
        else:
            self.is_in_time = True


class GrantExpiry:
    """Knows the last claims that had grants. What becomes of the grants is written into their ClaimedGrants."""

    def __init__(self) -> None:
        self._claims: deque[ClaimedGrants] = deque(maxlen=CLAIMS)
        self._pause_s = PAUSE_S[0]
        self._until = -math.inf
        self._logged_at = -math.inf
        self._has_tried = True

    @property
    def paused_until(self) -> float:
        return self._until

    def claimed(self, grants: int, now: float, seconds: float) -> ClaimedGrants:
        claim = ClaimedGrants(grants, now, seconds)
        if grants:
            self._has_tried = True
            self._claims.append(claim)
        return claim

    def is_paused(self, now: float) -> bool:
        """Whether to claim nothing now; call before each claim."""
        if now < self._until:
            return True
        if not self._has_tried:
            return False  # the pause is over: the next claim with grants tells whether it goes on
        open_claims = [claim for claim in self._claims if claim.not_late]
        is_in_time = any(claim.is_in_time or now >= claim.at + JUDGED_AFTER_S for claim in open_claims)
        if len(self._claims) < CLAIMS or is_in_time or len(open_claims) > 1:
            self._pause_s = PAUSE_S[0]
            return False
        if open_claims:
            self._until = open_claims[0].at + JUDGED_AFTER_S  # the last one's grants may still be given back
            return True
        self._log(now)
        self._until = now + self._pause_s
        self._pause_s = min(2 * self._pause_s, PAUSE_S[1])
        self._has_tried = False
        return True

    def _log(self, now: float) -> None:
        if now - self._logged_at < REMIND_S:
            return
        self._logged_at = now
        logger().warning(
            Event.GRANTS_LATE,
            error="every grant runs out before it can be sent",
            claim_s=round(self._claims[-1].seconds, 3),
            effect="claiming ever more rarely, down to once in 10 s",
            remedy="is the index llmqueue_ready there (llmqueue init), is the database slow? or raise LLMQUEUE_GUARD_S",
        )
