"""Decides when to claim, for which models and how many tasks. It knows no clock, no database and no event loop.

A model is asked for only when that can be of use: when the retry time of a refusal has come, after a wake-up, or by
the poll, once a second for all models, including those in cooldown or without quota for the day: that is one statement.
Maintenance that is due goes out with a claim, so that an idle worker needs one query a second for everything. While
only slots for hot tasks are free, hot tasks alone are claimed; they are also claimed first when one has come while
cold ones wait: that claim is short.
"""

from __future__ import annotations

import math
import random
from collections.abc import Collection, Sequence
from typing import Final

from llmqueue.types import Claim, Room, value
from llmqueue.worker.ask_times import AskTimes
from llmqueue.worker.grant_expiry import ClaimedGrants, GrantExpiry

POLL_S: Final = 1.0
# Grants live for a quarter of a second: more at once could not all be sent in time. Late ones halve it (design I3).
MAX_CLAIM: Final = 200
# The first claim of a session compiles and plans; a large one would be late as a whole.
FIRST_CLAIM: Final = 32
# The model may have more tasks for us than it may be given now.
QUOTA_REASONS: Final = {"rpm", "pace", "burst", "tpm", "day", "concurrency"}


@value
class Ask:
    """Claim now. `models` None: all that are enabled. `maintenance` names the steps that go out with the claim."""

    models: Sequence[str] | None
    room: Room
    maintenance: Sequence[str]


@value
class Wait:
    """Claim nothing before `until`, unless a wake-up comes."""

    until: float


class Planner:
    """One per worker. `models` None serves all; `can_announce`: a NOTIFY can wake this worker when a task comes.

    All times are seconds of the caller's clock.
    """

    def __init__(
        self,
        rng: random.Random,
        *,
        models: Sequence[str] | None = None,
        can_announce: bool = True,
        first_poll_at: float = 0.0,
    ) -> None:
        self._models = models
        self._can_announce = can_announce
        self._times = AskTimes(rng)
        self._expiry = GrantExpiry()
        self._poll_at = self._hot_poll_at = first_poll_at
        self._claim_size = FIRST_CLAIM
        self._late_grants = 0
        self._freed: set[str] = set()  # models with a freed slot since the last claim was decided
        self._is_announced = False  # the database knows that we wait for tasks
        self._must_look_again = False
        self._hot_has_come = False
        self._was_for_hot = False
        self._hot_first_at = -math.inf

    # --- what happens ---------------------------------------------------------------------------------------------

    def hear(self, signals: Collection[str], now: float) -> None:
        """Takes wake-up signals: `task`, `hot`, `config`; others only end a wait."""
        if "config" in signals:
            self._times.config_changed(now)
            self._poll_at = self._hot_poll_at = now
        if "task" in signals:
            self._times.task_came(now)
        if "hot" in signals:
            self._times.hot_came(now)
            self._hot_has_come = now >= self._hot_first_at and not self._times.is_idle

    def announcement_lost(self) -> None:
        """The database may not know any more that we wait: a claim has failed, or the worker's row is a new one."""
        self._is_announced = False

    def granted(self, grants: int, now: float, claim_s: float) -> ClaimedGrants:
        """A claim that took `claim_s` has given so many. Returns the record that grant_ended() takes."""
        return self._expiry.claimed(grants, now, claim_s)

    def grant_ended(self, claimed: ClaimedGrants, *, is_late: bool) -> None:
        self._late_grants += is_late
        claimed.ended(is_late=is_late)

    def slot_freed(self, model: str, now: float) -> None:
        self._times.slot_freed(model, now)
        self._freed.add(model)

    # --- what to do -----------------------------------------------------------------------------------------------

    def decide(self, now: float, room: Room, due: Sequence[str]) -> Ask | Wait:
        """Returns what to do now that so much is free and that maintenance is `due`."""
        if self._must_look_again:
            self._must_look_again = False
            self._times.task_came(now)
        wanted = self._hot_first(room.cut(self._next_claim_size()))
        models = self._models_to_ask(wanted, now)
        if models is not None and not models:
            return Wait(self.look_at(now, room))
        self._freed = set()
        return Ask(models, wanted, [*due, *self._announcement(due)] if wanted.for_any else due)

    def answered(self, ask: Ask, claim: Claim, now: float, gathering: Collection[str]) -> bool:
        """Notes what a claim found; models of `gathering` wait until more of their tasks have come together.

        Returns whether it gave all that it was asked for: the next claim goes out before those calls begin.
        """
        given = {grant.model for grant in claim.grants}
        limited = {refusal.model for refusal in claim.refusals if refusal.reason in QUOTA_REASONS}
        if self._was_for_hot and limited and (limited & given or not given):
            # More hot tasks come than their quota allows: claims for them alone would keep the oldest task waiting.
            self._hot_first_at = now + POLL_S
        for refusal in claim.refusals:
            model = refusal.model
            if ask.room.for_any:
                self._times.note(refusal, now, gathers=model in gathering)
            else:
                self._times.note_hot(refusal, now, has_given=model in given)
            if refusal.reason == "concurrency" and model in self._freed:
                self._times.slot_freed(model, now)  # the claim may have counted before that
        if self._can_announce and ask.room.for_any and self._times.has_empty and not self._is_announced:
            self._must_look_again = True  # the next claim announces that we wait, and is followed by another
        return 0 < ask.room.for_any <= len(claim.grants) and not self._late_grants

    def look_at(self, now: float, room: Room) -> float:
        """Returns when to decide again; `now` or earlier: at once."""
        if not room.total:
            return now + POLL_S
        if self._must_look_again:
            return now
        if room.for_any:
            next_at = min(self._times.next_at(), self._poll_at)
        else:
            next_at = min(self._times.next_hot_at(), self._hot_poll_at)
        return max(next_at, min(now + POLL_S, self._expiry.paused_until))

    def _hot_first(self, room: Room) -> Room:
        """A claim for hot tasks alone when one has come, but not twice in a row: a flood would keep all others out."""
        self._was_for_hot = self._hot_has_come and not self._was_for_hot and room.for_any > 0
        self._hot_has_come = False
        return Room(0, room.total) if self._was_for_hot else room

    def _models_to_ask(self, room: Room, now: float) -> Sequence[str] | None:
        """Returns all (None, or those that this worker serves) when a poll is due, else those whose time has come.

        A poll for hot tasks alone does not count as one for the others: they have theirs with the first free slot.
        """
        if not room.total or self._expiry.is_paused(now):
            return []
        if now >= (self._poll_at if room.for_any else self._hot_poll_at):
            self._hot_poll_at = now + POLL_S
            self._poll_at = now + POLL_S if room.for_any else self._poll_at
            return self._models
        return self._times.due(now) if room.for_any else self._times.hot_due(now)

    def _next_claim_size(self) -> int:
        """Halves after late grants, grows by a tenth otherwise: as many as this process can send in time."""
        if self._late_grants:
            self._claim_size = max(1, self._claim_size // 2)
            self._late_grants = 0
        else:
            self._claim_size = min(MAX_CLAIM, self._claim_size + self._claim_size // 10 + 1)
        return self._claim_size

    def _announcement(self, due: Sequence[str]) -> list[str]:
        """Says that we wait for tasks, in a claim that is followed by another, so that no task falls in between.

        Not while no NOTIFY can be heard: it would only cost those who insert.
        """
        if not self._can_announce:
            return []
        if self._times.has_empty and not self._is_announced:
            self._is_announced = self._must_look_again = True
            return ["idle"]
        if self._is_announced and not self._times.has_empty and "heartbeat" in due:
            self._is_announced = False
            return ["busy"]
        return []
