"""The use of a model over time, in a fixed number of columns for a log of any length."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from llmqueue.audit.calls import KINDS

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

COLUMNS = 1000
MOST_CHANGES = 1000


@dataclass(frozen=True, slots=True)
class Change:
    """A changed limit, in force from the grant at `at_us` on."""

    at_us: int
    kind: int
    before: int | None
    after: int | None


@dataclass(slots=True)
class Chart:
    """For each kind and column: the fullest window that ends in it and the limit then; None if unknown.

    The first thousand changes of limits are kept; the columns show the others.
    """

    from_us: int
    to_us: int
    columns: int = COLUMNS
    used: list[list[int | None]] = field(init=False)
    limits: list[list[int | None]] = field(init=False)
    changes: list[Change] = field(default_factory=list)
    _last: tuple[int | None, ...] | None = None

    def __post_init__(self) -> None:
        self.used = [[None] * self.columns for _ in KINDS]
        self.limits = [[None] * self.columns for _ in KINDS]

    def start_of(self, column: int) -> int:
        return self.from_us - (self.from_us - self.to_us) * column // self.columns  # rounded up

    def edges(self, after_us: int, until_us: int) -> Iterator[int]:
        """Yields the starts of columns in (after, until]."""
        first = 0 if after_us < self.from_us else self._column(after_us)
        for column in range(first, self.columns):
            at_us = self.start_of(column)
            if at_us > until_us:
                return
            if at_us > after_us:
                yield at_us

    def note(self, at_us: int, used: Sequence[int], limits: tuple[int | None, ...] | None) -> None:
        """Records a window that ends at `at_us`; `limits` None: it is empty, and the limits are unchanged."""
        if limits is None:
            limits = self._last
        elif limits != self._last:
            self._note_changes(at_us, limits)
            self._last = limits
        if not self.from_us <= at_us <= self.to_us:
            return
        column = self._column(at_us)
        for kind in range(len(KINDS)):
            self.used[kind][column] = max(self.used[kind][column] or 0, used[kind])
            if limits is not None:
                self.limits[kind][column] = limits[kind]

    def _note_changes(self, at_us: int, limits: tuple[int | None, ...]) -> None:
        if self._last is None:
            return
        for kind, (before, after) in enumerate(zip(self._last, limits, strict=True)):
            if before != after and len(self.changes) < MOST_CHANGES:
                self.changes.append(Change(at_us, kind, before, after))

    def _column(self, at_us: int) -> int:
        whole_us = max(1, self.to_us - self.from_us)
        return min(self.columns - 1, (at_us - self.from_us) * self.columns // whole_us)
