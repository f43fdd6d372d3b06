"""Reads the attempt log, from its oldest entry to the newest one at the begin of reading.

It reads pages by the primary key, each in a short read-only transaction. So a log of months needs no sort, no long
snapshot that would block VACUUM, and works through a pooler. The fences of a model are in the order of its grants,
because both are made under the model's lock. The pages are as consistent as one snapshot: while a grant is not
committed, it blocks all later grants of its model, so their fences lie beyond the newest entry and are not read.

A million attempts take about 15 s of a core, and memory only for the calls of one window of each model.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

from psycopg.rows import args_row

from llmqueue.audit.calls import Call
from llmqueue.audit.judge import SECOND_US, Scope
from llmqueue.errors import NotInitialised

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    import psycopg
    from psycopg.rows import TupleRow

PAGE = 20_000
# Fences of different models are in the order of their grants, except during one claim.
DISORDER_S = 60.0

FRAME = """
    select l.window_s, greatest(l.guard_s, l.guard_before_s), clock_timestamp(),
           (select min(a.fence) from llmqueue.attempt a), (select max(a.fence) from llmqueue.attempt a)
      from llmqueue.limiter l
"""
NEXT = """
    select a.fence, a.granted_at from llmqueue.attempt a
     where a.fence >= %(fence)s and a.fence <= %(last)s order by a.fence limit 1
"""
BOUND = """
    select max(page.fence), array_agg(distinct page.model)
      from (select a.fence, a.model from llmqueue.attempt a
             where a.fence >= %(first)s and a.fence <= %(last)s order by a.fence limit %(page)s) page
"""
CALLS = """
    select a.model,
           (extract(epoch from a.granted_at) * 1000000)::bigint,
           a.rpm,
           (extract(epoch from a.sent_at) * 1000000)::bigint,
           (extract(epoch from a.ended_at) * 1000000)::bigint,
           a.outcome, a.error_class, a.tpm, a.output_tpm,
           a.tokens + coalesce(a.top_up_tokens, 0), a.output_tokens_charged, a.tokens_final, a.output_tokens_final
      from llmqueue.attempt a
     where a.fence >= %(first)s and a.fence <= %(last)s
       and (%(models)s::text[] is null or a.model = any (%(models)s))
     order by a.fence
"""


@dataclass(frozen=True, slots=True)
class Frame:
    """The limiter's constants, the database's clock, and the fences of the oldest and the newest attempt, or None."""

    window_s: float
    guard_s: float
    now: datetime
    first: int | None
    last: int | None

    def scope(self, since: datetime | None) -> Scope:
        if since is None:
            return Scope(self.window_s, self.guard_s)
        return Scope(self.window_s, self.guard_s, round(since.timestamp() * SECOND_US))


def read_frame(conn: psycopg.Connection[TupleRow]) -> Frame:
    row = conn.execute(FRAME).fetchone()
    if row is None:
        raise NotInitialised("llmqueue.limiter is empty: run llmqueue init")
    return Frame(*row)


class AttemptLog:
    """The attempts from `since` to the newest of `frame`, and the earlier ones that the first windows need."""

    def __init__(
        self, conn: psycopg.Connection[TupleRow], frame: Frame, since: datetime | None, models: Sequence[str] | None
    ) -> None:
        conn.read_only = True
        self._conn = conn
        self._frame = frame
        self._since = since
        self._models = None if models is None else list(models)
        # All models in the pages that were read, requested or not.
        self.models: set[str] = set()

    def reach(self) -> tuple[datetime, datetime] | None:
        """Returns the times of the first and the last grant in the log; None if there is none."""
        first, last = self._frame.first, self._frame.last
        if first is None or last is None:
            return None
        oldest, newest = self._next(first), self._next(last)
        return None if oldest is None or newest is None else (oldest[1], newest[1])

    def calls(self, progress: Callable[[float], None]) -> Iterator[Call]:
        """Yields the calls in the order of their grants; calls `progress` with the part of the log that is read."""
        begin, last = self._begin(), self._frame.last
        if begin is None or last is None:
            return
        first = begin
        while True:
            with self._conn.transaction():
                page = {"first": first, "last": last, "page": PAGE}
                end, models = self._conn.execute(BOUND, page).fetchone() or (None, None)
                if end is None:
                    return
                self.models.update(models)
                with self._conn.cursor(binary=True, row_factory=args_row(Call)) as cursor:
                    calls = cursor.execute(CALLS, {"first": first, "last": end, "models": self._models}).fetchall()
            yield from calls
            first = end + 1
            progress((first - begin) / (last + 1 - begin))

    def _begin(self) -> int | None:
        """Finds, by bisection, the first fence to read: a window, a guard and some disorder before `since`."""
        first, last = self._frame.first, self._frame.last
        if self._since is None or first is None or last is None:
            return first
        begin = self._since - timedelta(seconds=self._frame.window_s + self._frame.guard_s + DISORDER_S)
        while first < last:
            middle = (first + last) // 2
            found = self._next(middle)
            if found is None or found[1] >= begin:
                last = middle
            else:
                first = found[0] + 1
        return first

    def _next(self, fence: int) -> tuple[int, datetime] | None:
        row = self._conn.execute(NEXT, {"fence": fence, "last": self._frame.last}).fetchone()
        return None if row is None else (row[0], row[1])
