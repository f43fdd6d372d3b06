"""Judges the calls of the log one by one, in the order of their grants, with one window per model in memory."""

from __future__ import annotations

from dataclasses import dataclass
from heapq import heappop, heappush
from typing import TYPE_CHECKING

from llmqueue.audit.calls import KINDS, LATE_GRANT, RATE_LIMITED, Call
from llmqueue.audit.report import Final, Judged, ModelReport, Window, moment
from llmqueue.audit.sliding import Member, SlidingWindow

if TYPE_CHECKING:
    from collections.abc import Callable

    from llmqueue.audit.chart import Chart

SECOND_US = 1_000_000
# The limiter compensates steps of the clock back by up to 1 s; after a larger one it waits for a window (design I7).
HELD_US = SECOND_US
MOST_VIOLATIONS = 100
# The moment of sending is stored in whole microseconds.
ROUNDING_US = 1


@dataclass(frozen=True, slots=True)
class Scope:
    """The windows to judge: those that end at `since_us` or later. `guard_s` is the largest guard that was in force."""

    window_s: float = 60.0
    guard_s: float = 0.5
    since_us: int = -(2**62)

    @property
    def window_us(self) -> int:
        return round(self.window_s * SECOND_US)

    @property
    def send_within_us(self) -> int:
        """The time after its grant in which a call is sent: half a guard (for present workers, two fifths)."""
        return round(self.guard_s * SECOND_US / 2)


class Auditor:
    """Takes calls of any models in the order of their grants, that is of their fences; `finish` returns reports."""

    def __init__(self, scope: Scope, chart: Callable[[str], Chart] | None = None) -> None:
        """`chart` creates the chart for the windows of a model."""
        self._scope = scope
        self._chart = chart
        self._models: dict[str, _Model] = {}

    def push(self, call: Call) -> None:
        model = self._models.get(call.model)
        if model is None:
            chart = None if self._chart is None else self._chart(call.model)
            model = self._models[call.model] = _Model(call.model, self._scope, chart)
        model.push(call)

    def finish(self) -> list[ModelReport]:
        """Returns the reports, by name, of all models with a call since the start. Call it once, at the end."""
        reports = (model.finish() for _, model in sorted(self._models.items()))
        return [report for report in reports if report is not None]


class _Kind:
    """The worst window and the violations of one limit of one model."""

    def __init__(self, what: str) -> None:
        self._what = what
        self._worst: Window | None = None
        self._windows = 0
        self._over = 0
        self._violations: list[Window] = []
        self._over_us: int | None = None  # the end of the last window over the limit
        self._is_kept = False
        self._final: Final | None = None
        self.overshoot = 0
        self.sent = 0  # used amount times microseconds: the integral over the ends of full windows
        self.allowed = 0

    def judge(self, from_us: int, to_us: int, used: int, limit: int) -> None:
        self._windows += 1
        worst = self._worst
        if worst is None or _is_fuller(used, limit, worst):
            self._worst = Window(moment(from_us), moment(to_us), used, limit)
        if used <= limit:
            return
        self._over += 1
        found = self._violations
        is_apart = self._over_us is None or from_us >= self._over_us
        self._over_us = to_us
        if is_apart:
            self._is_kept = len(found) < MOST_VIOLATIONS
            if self._is_kept:
                found.append(Window(moment(from_us), moment(to_us), used, limit))
        elif self._is_kept and _is_fuller(used, limit, found[-1]):
            found[-1] = Window(moment(from_us), moment(to_us), used, limit)

    def judge_final(self, from_us: int, to_us: int, used: int, limit: int, overshoot: int) -> None:
        if self._final is None or _is_fuller(used, limit, self._final):
            self._final = Final(moment(from_us), moment(to_us), used, limit, overshoot)

    def report(self) -> Judged | None:
        """Returns the result; None if nothing was judged because there was no limit."""
        if self._worst is None:
            return None
        is_calls = self._what == KINDS[0]
        return Judged(
            what=self._what,
            worst=self._worst,
            windows=self._windows,
            over=self._over,
            violations=tuple(self._violations),
            use_pct=round(100 * self.sent / self.allowed, 2) if self.allowed else None,
            final=self._final,
            overshoot=None if is_calls else self.overshoot,
        )


class _Model:
    """The windows and the counts of one model."""

    def __init__(self, name: str, scope: Scope, chart: Chart | None) -> None:
        self._name = name
        self._window_us = scope.window_us
        self._send_within_us = scope.send_within_us
        self._since_us = scope.since_us
        self._chart = chart
        self._no = 0
        self._kinds = tuple(_Kind(what) for what in KINDS)
        self._counts = dict.fromkeys(
            (
                "attempts",
                "sent",
                "unknown",
                "unsent",
                "forfeited",
                "sent_late",
                "sent_early",
                "refused",
                "rate_limited",
                "clock_steps",
                "not_judged",
            ),
            0,
        )
        self._slowest_us: int | None = None
        self._first_us: int | None = None
        self._last_us = 0
        self._granted_us: int | None = None
        self._blind_until_us = -(2**62)  # windows that end before this also hold calls from before the clock's step
        self._restart()

    def _restart(self) -> None:
        """Begins with an empty window, at the start and after the clock has stepped back."""
        self._waiting: list[tuple[int, int, Member]] = []
        self._window = SlidingWindow(self._window_us, self._send_within_us)
        self._at_us: int | None = None
        self._full_us = 0  # from here on windows are full
        self._limits: tuple[int | None, ...] | None = None

    def push(self, call: Call) -> None:
        if self._granted_us is not None and call.granted_us < self._granted_us - HELD_US:
            self._end_of_time()
            self._counts["clock_steps"] += call.granted_us >= self._since_us
            self._restart()
            self._granted_us = None
            self._blind_until_us = call.granted_us + self._window_us
        self._granted_us = max(call.granted_us, self._granted_us or call.granted_us)
        self._count(call)
        if call.is_unsent:
            return
        self._no += 1
        if call.sent_us is None:
            lo_us, hi_us = call.granted_us, call.granted_us + self._send_within_us
        else:
            lo_us = hi_us = max(call.sent_us, call.granted_us)
        heappush(self._waiting, (lo_us, self._no, Member(call, self._no, lo_us, hi_us)))
        # No later call was sent before its own grant.
        self._slide(self._granted_us - HELD_US)

    def finish(self) -> ModelReport | None:
        self._end_of_time()
        if self._first_us is None:
            return None
        limits = (kind.report() for kind in self._kinds)
        return ModelReport(
            model=self._name,
            first_at=moment(self._first_us),
            last_at=moment(self._last_us),
            slowest_s=None if self._slowest_us is None else self._slowest_us / SECOND_US,
            limits=tuple(judged for judged in limits if judged is not None),
            **self._counts,
        )

    def _count(self, call: Call) -> None:
        if call.granted_us < self._since_us:
            return
        counts = self._counts
        self._first_us = call.granted_us if self._first_us is None else min(self._first_us, call.granted_us)
        self._last_us = max(self._last_us, call.granted_us)
        counts["attempts"] += 1
        if call.is_unsent:
            counts["unsent"] += 1
            counts["forfeited"] += call.error_class == LATE_GRANT
        elif call.sent_us is None:
            counts["unknown"] += 1
        else:
            counts["sent"] += 1
            taken_us = call.sent_us - call.granted_us
            counts["sent_late"] += taken_us > self._send_within_us + ROUNDING_US
            counts["sent_early"] += taken_us < -ROUNDING_US
            self._slowest_us = max(taken_us, self._slowest_us or 0)
        if call.is_refusal:
            counts["refused"] += 1
            counts["rate_limited"] += call.error_class == RATE_LIMITED

    def _slide(self, until_us: int) -> None:
        """Judges the windows that end before `until_us`."""
        waiting = self._waiting
        while waiting and waiting[0][0] < until_us:
            at_us = waiting[0][0]
            self._draw_until(at_us)
            self._window.move(at_us)
            self._pass_time(at_us)
            while waiting and waiting[0][0] == at_us:
                member = heappop(waiting)[2]
                self._window.enter(member)
                self._use(member)
            self._judge(at_us)

    def _judge(self, at_us: int) -> None:
        newest = self._window.newest
        if newest is None:
            return
        tokens, output = self._window.sums
        self._limits = newest.limits
        used = (len(self._window), tokens.held, output.held)
        if self._chart is not None:
            self._chart.note(at_us, used, self._limits)
        if at_us < self._since_us:
            return
        self._counts["not_judged"] += at_us < self._blind_until_us
        from_us = at_us - self._window_us
        for kind, held, limit in zip(self._kinds, used, self._limits, strict=True):
            if limit is not None:
                kind.judge(from_us, at_us, held, limit)
        for kind, sums, limit in zip(self._kinds[1:], (tokens, output), self._limits[1:], strict=True):
            if limit is not None:
                kind.judge_final(from_us, at_us, sums.final, limit, sums.overshoot)

    def _pass_time(self, at_us: int) -> None:
        """Adds what the limits allowed since the last window, and notes when the first window is full."""
        if self._at_us is None:
            self._full_us = max(at_us + self._window_us, self._since_us)
        elif self._limits is not None and at_us > self._full_us:
            passed_us = at_us - max(self._at_us, self._full_us)
            for kind, limit in zip(self._kinds, self._limits, strict=True):
                kind.allowed += (limit or 0) * passed_us
        self._at_us = at_us

    def _use(self, member: Member) -> None:
        """Adds the call to its windows: those that end in the 60 s after it was sent."""
        counted_us = member.lo_us + self._window_us - max(member.lo_us, self._full_us)
        if counted_us > 0:
            self._add_use(member, counted_us)
        if member.has_charge and member.lo_us >= self._since_us:
            for kind, charged, final in zip(self._kinds[1:], member.charged, member.final, strict=True):
                kind.overshoot += max(0, final - charged)

    def _add_use(self, member: Member, for_us: int) -> None:
        self._kinds[0].sent += for_us
        if member.has_charge:
            for kind, limit, amount in zip(self._kinds[1:], member.call.limits[1:], member.final, strict=True):
                if limit is not None:
                    kind.sent += amount * for_us

    def _end_of_time(self) -> None:
        """Judges the waiting calls, and subtracts the time after the last window, which does not count."""
        self._slide(2**63)
        if self._at_us is None:
            return
        for member in self._window.members:
            over_us = member.lo_us + self._window_us - max(self._at_us, self._full_us)
            if over_us > 0:
                self._add_use(member, -over_us)
        if self._chart is not None:
            self._draw_until(self._chart.to_us)

    def _draw_until(self, at_us: int) -> None:
        """Draws the windows that end at the edges of the chart's columns, where no call enters."""
        if self._chart is None or self._at_us is None:
            return
        for edge_us in self._chart.edges(self._at_us, at_us):
            self._window.move(edge_us)
            newest = self._window.newest
            used = (len(self._window), *(sums.held for sums in self._window.sums))
            self._chart.note(edge_us, used, None if newest is None else newest.limits)


def _is_fuller(used: int, limit: int, other: Window | Final) -> bool:
    """Returns whether used / limit exceeds the other's; with a limit of 0 for both, compares the amounts."""
    if limit == other.limit:
        return used > other.used
    return used * other.limit > other.used * limit
