"""When to ask for which model again: no model before its time, none forgotten (design I6)."""

from __future__ import annotations

import math
import random
import zlib
from typing import Final

from llmqueue.types import Refusal

# Refused models come due on a grid, so that one claim asks for several. Each process has a grid of its own: two that
# are refused at the same moment do not come back at the same moment. A model that waits for quota waits for half of
# this longer in the mean, which is less than a thousandth of a window.
GRID_S: Final = 0.05
# For models whose tasks go out together. No longer than a cell: the windows of 60 s would not be used up.
GATHER_S: Final = 0.25
JITTER_S: Final = 0.01
CONTENDED_S: Final = (0.002, 0.015)
# Calls leave a window by cells of 250 ms, in all models at the same moments: asked for then, all models would come in
# one large claim, four times a second. Each model waits for a part of a cell, always the same part. That costs no
# quota: a call that is granted so much later entered the window so much later (docs/decisions.md, 44).
SPREAD_S: Final = 0.15
OF_WINDOWS: Final = {"rpm", "tpm"}


class AskTimes:
    """Times are monotonic seconds; inf: only a wake-up or the poll.

    There are two calendars. One is for tasks of any kind. The other is for models on which a hot task may be waiting;
    it counts while only slots for hot tasks are free. A model with endless cold tasks must not be asked for then, or
    the worker would do nothing else.
    """

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng
        self._ask_at: dict[str, float] = {}
        self._hot_at: dict[str, float] = {}
        self._empty: set[str] = set()
        self._full: set[str] = set()
        self._grid_at = rng.uniform(0, GRID_S)

    def note(self, refusal: Refusal, now: float, *, gathers: bool = False) -> None:
        """Notes what a claim for any task found. With `gathers` a refused model waits until more tasks have come."""
        model, reason = refusal.model, refusal.reason
        self._empty.discard(model)
        self._full.discard(model)
        if reason == "unknown":
            self._ask_at.pop(model, None)
            self._hot_at.pop(model, None)
            return
        again_at = now if reason is None else self._again_at(refusal, now)
        later_s = _spread_s(model) if reason in OF_WINDOWS and not gathers else 0.0
        grid_s = GATHER_S if gathers else GRID_S
        self._ask_at[model] = again_at if reason in {None, "contended"} else self._on_grid(again_at + later_s, grid_s)
        if reason == "empty":
            self._empty.add(model)
            self._hot_at.pop(model, None)
        if reason == "concurrency":
            self._full.add(model)
        if model in self._hot_at:
            self._hot_at[model] = again_at

    def note_hot(self, refusal: Refusal, now: float, *, has_given: bool) -> None:
        """Notes what a claim for hot tasks alone found, which says nothing about the cold ones.

        A model that gave no hot task is left alone until the next wake-up or poll, also when it gives no reason.
        """
        model, reason = refusal.model, refusal.reason
        if reason in {"empty", "unknown", "paused"} or (reason is None and not has_given):
            self._hot_at.pop(model, None)
        else:
            self._hot_at[model] = now if reason is None else self._again_at(refusal, now)

    def task_came(self, now: float) -> None:
        self._ask_at |= dict.fromkeys(self._empty, now)

    def hot_came(self, now: float) -> None:
        """All models at once, the refused ones too: a part of the calls and slots is kept for hot tasks."""
        self._hot_at = dict.fromkeys(self._ask_at, now)
        self._ask_at = dict.fromkeys(self._ask_at, now)

    def slot_freed(self, model: str, now: float) -> None:
        if model in self._full:
            self._ask_at[model] = now
        if self._hot_at.get(model) == math.inf:
            self._hot_at[model] = now

    def config_changed(self, now: float) -> None:
        self._ask_at = dict.fromkeys(self._ask_at, now)
        self._hot_at = dict.fromkeys(self._hot_at, now)

    def due(self, now: float) -> list[str]:
        return [model for model, at in self._ask_at.items() if at <= now]

    def next_at(self) -> float:
        return min(self._ask_at.values(), default=math.inf)

    def hot_due(self, now: float) -> list[str]:
        return [model for model, at in self._hot_at.items() if at <= now]

    def next_hot_at(self) -> float:
        return min(self._hot_at.values(), default=math.inf)

    @property
    def is_idle(self) -> bool:
        """Tells whether no model had a task, as far as is known."""
        return len(self._empty) == len(self._ask_at)

    @property
    def has_empty(self) -> bool:
        return bool(self._empty)

    def _on_grid(self, at: float, grid_s: float) -> float:
        return at if at == math.inf else self._grid_at + grid_s * math.ceil((at - self._grid_at) / grid_s)

    def _again_at(self, refusal: Refusal, now: float) -> float:
        """When a refused model may have room; inf where the reason does not say, as with concurrency or paused."""
        if refusal.reason == "contended":
            return now + self._rng.uniform(*CONTENDED_S)
        if refusal.retry_in_s is None:
            return math.inf
        return now + max(0.0, refusal.retry_in_s) + self._rng.uniform(0, JITTER_S)


def _spread_s(model: str) -> float:
    return SPREAD_S * (zlib.crc32(model.encode()) % 1000) / 1000
