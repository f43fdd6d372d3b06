"""Judges every answer, every call and every sliding window of a run, by the table and the backend's call log."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from psycopg.rows import class_row

from llmqueue.demo.bound import even_time_s, least_time_s
from llmqueue.demo.windows import WINDOW_S, Period, Window, fullest, share_used, windows
from llmqueue.fake_backend import expected_answer

if TYPE_CHECKING:
    import psycopg
    from psycopg.rows import TupleRow

    from llmqueue.fake_backend import LoggedCall

# The tasks of the demo: all rows without a rating, because the rows solved before have one.
_ROWS = """
    select p.ticket::text as ticket, p.question, p.reply, p.state
      from support.prompts p
     where not exists (select from support.rating r where r.ticket = p.ticket)
"""


@dataclass(frozen=True, slots=True)
class Row:
    """A task at the end, as its owner sees it."""

    ticket: str
    question: str
    reply: str | None
    state: str


@dataclass(frozen=True, slots=True)
class Limit:
    """One model under one limit, as the backend saw it. `share` is None if no full window ended in that time."""

    model: str
    rpm: int
    from_s: float
    calls: int
    fullest: Window | None
    share: float | None


@dataclass(frozen=True, slots=True)
class Answers:
    """The numbers of tasks by their end."""

    tasks: int
    solved: int
    failed: int
    right: int


@dataclass(frozen=True, slots=True)
class Calls:
    """The numbers of calls that the backend saw."""

    total: int
    refused: int
    once: int


@dataclass(frozen=True, slots=True)
class Times:
    """Seconds from the first call until the last one was sent and answered, and the least times under the quotas."""

    last_sent_s: float
    last_answered_s: float
    least_s: float
    even_s: float


@dataclass(frozen=True, slots=True)
class Verdict:
    """The result of the whole run. All is well if there are no problems."""

    answers: Answers
    calls: Calls
    limits: Sequence[Limit]
    times: Times
    problems: Sequence[str]
    example: str  # the key of a task


def read_rows(conn: psycopg.Connection[TupleRow]) -> list[Row]:
    """Returns the tasks that were waiting when the demo began."""
    with conn.cursor(row_factory=class_row(Row)) as cursor:
        return cursor.execute(_ROWS).fetchall()


def judge(
    rows: Sequence[Row],
    calls: Sequence[LoggedCall],
    periods: Mapping[str, Sequence[Period]],
    problems: Sequence[str] = (),
) -> Verdict:
    """Returns the verdict; `periods` are on the monotonic clock, `problems` are those found during the run."""
    answers = _answers(rows)
    seen = _calls(rows, calls)
    limits = [limit for model, held in periods.items() for limit in _limits(model, held, calls)]
    found = [*problems, *_wrong_answers(answers), *_wrong_calls(answers, seen), *_exceeded(limits)]
    if unknown := {call.model for call in calls} - set(periods):
        found.append(f"calls to models that nobody configured: {', '.join(sorted(unknown))}")
    return Verdict(answers, seen, limits, _times(calls, periods, len(rows)), found, rows[0].ticket if rows else "")


def _answers(rows: Sequence[Row]) -> Answers:
    return Answers(
        tasks=len(rows),
        solved=sum(row.state == "answered" for row in rows),
        failed=sum(row.state == "failed" for row in rows),
        right=sum(row.state == "answered" and row.reply == expected_answer(row.question) for row in rows),
    )


def _calls(rows: Sequence[Row], calls: Sequence[LoggedCall]) -> Calls:
    by_key = Counter(call.key for call in calls)
    return Calls(
        total=len(calls),
        refused=sum(call.status == 429 for call in calls),
        once=sum(by_key[f"{row.ticket}:0"] == 1 for row in rows),
    )


def _limits(model: str, periods: Sequence[Period], calls: Sequence[LoggedCall]) -> Iterator[Limit]:
    """Yields a Limit for each limit of the model, in order; successive periods with the same rpm are merged."""
    arrivals = [call.arrived_monotonic for call in calls if call.model == model]
    first = min((call.arrived_monotonic for call in calls), default=0.0)
    last = max((call.arrived_monotonic for call in calls), default=0.0)
    found = windows(arrivals, periods)
    merged = [period for i, period in enumerate(periods) if i == 0 or period.rpm != periods[i - 1].rpm]
    for i, period in enumerate(merged):
        until = merged[i + 1].start_s if i + 1 < len(merged) else float("inf")
        inside = [window for window in found if period.start_s <= window.at_s < until]
        share = share_used(arrivals, periods, max(first + WINDOW_S, period.start_s), min(last, until))
        yield Limit(model, period.rpm, max(0.0, period.start_s - first), len(inside), fullest(inside), share)


def _times(calls: Sequence[LoggedCall], periods: Mapping[str, Sequence[Period]], tasks: int) -> Times:
    first = min((call.arrived_monotonic for call in calls), default=0.0)
    first_at = min((call.arrived_at for call in calls), default=0.0)
    last = max((call.arrived_monotonic for call in calls), default=0.0)
    answered_at = max((call.finished_at or call.arrived_at for call in calls), default=0.0)
    since_first = [[Period(period.start_s - first, period.rpm) for period in held] for held in periods.values()]
    return Times(
        last_sent_s=last - first,
        last_answered_s=answered_at - first_at,
        least_s=least_time_s(since_first, tasks),
        even_s=even_time_s(since_first, tasks),
    )


def _wrong_answers(answers: Answers) -> Iterator[str]:
    if answers.solved < answers.tasks:
        yield f"{answers.tasks - answers.solved:,} of {answers.tasks:,} tasks were not solved"
    if answers.right < answers.solved:
        yield f"{answers.solved - answers.right:,} answers are not the right ones"


def _wrong_calls(answers: Answers, calls: Calls) -> Iterator[str]:
    if calls.once < answers.tasks:
        yield f"{answers.tasks - calls.once:,} tasks were not called exactly once"
    if calls.total > answers.tasks:
        yield f"{calls.total:,} calls were made for {answers.tasks:,} tasks"
    if calls.refused:
        yield f"the backend refused {calls.refused:,} calls with 429"


def _exceeded(limits: Sequence[Limit]) -> Iterator[str]:
    for limit in limits:
        if (window := limit.fullest) and window.is_over:
            yield f"{limit.model}: {window.calls:,} calls within 60 s, where its limit was {window.rpm:,}"
