"""The audit's report on a model."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def moment(us: int) -> datetime:
    return EPOCH + timedelta(microseconds=us)


@dataclass(frozen=True, slots=True)
class Window:
    """The window (from_at, to_at]: the most that it can have held (`used`), and the limit of its newest grant."""

    from_at: datetime
    to_at: datetime
    used: int
    limit: int

    @property
    def is_over(self) -> bool:
        return self.used > self.limit


@dataclass(frozen=True, slots=True)
class Final:
    """A window by its corrected charges: at most its limit plus the overshoot of its calls."""

    from_at: datetime
    to_at: datetime
    used: int
    limit: int
    overshoot: int


@dataclass(frozen=True, slots=True)
class Judged:
    """The result for one limit of a model; `what` is calls, tokens or output_tokens.

    `worst` is the window that comes nearest to its limit or exceeds it most. `over` counts the windows above their
    limit. Such windows that overlap form a group; `violations` has the worst window of each of the first hundred
    groups. `use_pct` is the amount used as a share of the limit, over all full windows between the first call and the
    last: the integral of their contents over their ends, divided by the integral of the limit; charges count as
    corrected. It is None if no window is full. `final` and `overshoot` (of all calls) are None for calls.
    """

    what: str
    worst: Window
    windows: int
    over: int
    violations: tuple[Window, ...]
    use_pct: float | None
    final: Final | None
    overshoot: int | None


@dataclass(frozen=True, slots=True)
class ModelReport:
    """The figures of a model since the audit's start.

    `attempts` = `sent` (at a known moment) + `unknown` + `unsent`; `forfeited` counts the unsent calls whose grant had
    expired. `sent_late` counts calls sent later than half a guard after their grant; `slowest_s` is the longest time
    from grant to sending. `sent_early` counts calls sent before their grant, which is impossible: such a record is a
    violation. `refused` counts refusals of the backend, `rate_limited` those by status 429. `clock_steps` counts steps
    of the database's clock back by more than a second. No window is judged across a step: `not_judged` counts the
    windows that end within 60 s after one, of which only the calls after the step are known.
    """

    model: str
    first_at: datetime
    last_at: datetime
    attempts: int
    sent: int
    unknown: int
    unsent: int
    forfeited: int
    sent_late: int
    sent_early: int
    slowest_s: float | None
    refused: int
    rate_limited: int
    clock_steps: int
    not_judged: int
    limits: tuple[Judged, ...]

    @property
    def is_violated(self) -> bool:
        return self.sent_late > 0 or self.sent_early > 0 or any(judged.over for judged in self.limits)
