"""A fleet's log of charges, kept by hand, with which tests/properties/test_tokens.py compares the ledger.

True time passes and never steps; the database's clock is true time plus an offset that does. Windows are looked at in
true time, days and cooldowns by the database's clock, as the limiter promises them.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

from psycopg.types.json import Jsonb

from tests.support.sql import Grant

WINDOW_S = 60.0
CELL_S = 0.25
FILLED = 500_000_000  # calls of a row that stands for none: the ledger was filled after a step of the clock


def most(limit: int | None) -> float:
    return math.inf if limit is None else limit


@dataclass(frozen=True)
class Limits:
    """A row of model_config."""

    rpm: int = 600
    tpm: int | None = None
    output_tpm: int | None = None
    token_mode: str = "sum"
    max_output: int | None = None
    rpd: int | None = None
    tpd: int | None = None
    quota_timezone: str = "UTC"
    burst_windows: Mapping[str, float] | None = None
    hot_share: float = 0.1
    enabled: bool = True

    def columns(self) -> dict[str, Any]:
        return {**vars(self), "burst_windows": self.burst_windows and Jsonb(dict(self.burst_windows))}

    @property
    def is_paused(self) -> bool:
        return not self.enabled or 0 in {self.rpm, self.tpm, self.rpd, self.tpd}

    @property
    def counts_tokens(self) -> bool:
        return not (self.tpm is None and self.tpd is None and self.output_tpm is None)

    def charge(self, size: int, max_output: int | None, known_input: int) -> tuple[int, int, int, int]:
        """Returns input, output, and what counts against tpm and output_tpm, for a prompt of `size` bytes."""
        given = max(math.ceil(size / 4) + 8, known_input)
        whole = next((limit for limit in (self.output_tpm, self.tpm, self.tpd) if limit is not None), 0)
        allowed = self.max_output if max_output is None else max_output
        taken = min(1024, max(1, whole // 4)) if allowed is None else allowed
        counted: float = {"input": given, "split": given, "max": max(given, taken)}.get(self.token_mode, given + taken)
        if self.token_mode == "actual":  # what is only expected cannot be too much
            counted = max(given, min(counted, most(self.tpm), most(self.tpd)))
        return given, taken, int(counted), int(min(taken, most(self.output_tpm))) if self.token_mode == "split" else 0

    def can_never_take(self, tokens: int, output_tokens: int) -> bool:
        is_too_many_a_day = tokens + output_tokens > most(self.tpd)
        return tokens > most(self.tpm) or output_tokens > most(self.output_tpm) or is_too_many_a_day

    def midnight(self, now: datetime) -> datetime:
        zone = ZoneInfo(self.quota_timezone)
        return now.astimezone(zone).replace(hour=0, minute=0, second=0, microsecond=0)


@dataclass
class Entry:
    """One charge: that of a grant, or of its top-up.

    `at` and `sent_by` are true time: its call goes out between them. `clock` is what the database's clock said.
    """

    at: timedelta
    sent_by: timedelta
    clock: datetime
    cell: int
    epoch: int
    calls: int
    hot_calls: int
    tokens: int
    output_tokens: int
    reserved: int = 0
    day_tokens: int = 0

    def __post_init__(self) -> None:
        self.reserved = self.tokens
        # A correction that comes after many minutes finds no charge any more: the day keeps the larger of both.
        self.day_tokens = self.tokens + self.output_tokens


@dataclass
class Logged:
    """An attempt: what it was charged, and what became of it."""

    grant: Grant
    at: timedelta
    clock: datetime
    tpm: int | None
    mode: str
    output_charge: int
    tokens: int | None
    entries: list[Entry]
    is_open: bool = True

    def refund(self) -> None:
        self.entries = []

    def reconcile(self, input_tokens: int | None, output_tokens: int | None) -> None:
        """Puts what was used in the place of what was charged; what was topped up is the least of it."""
        is_by_use = self.mode in {"actual", "split"}
        if self.tokens is None or not input_tokens or (is_by_use and output_tokens is None):
            return
        counted = {
            "sum": input_tokens + self.output_charge,
            "max": max(input_tokens, self.output_charge),
            "actual": input_tokens + (output_tokens or 0),
        }.get(self.mode, input_tokens)
        charge, *top_ups = self.entries
        charge.tokens = max(counted - sum(top_up.tokens for top_up in top_ups), 0)
        if self.mode == "split":
            charge.output_tokens = output_tokens or 0
        charge.day_tokens = min(charge.day_tokens, charge.tokens + charge.output_tokens)


@dataclass
class Model:
    """The state of one model, kept by hand."""

    limits: Limits
    log: list[Logged] = field(default_factory=list)
    cooldown_until: datetime | None = None
    probe: Logged | None = None
    is_cut: bool = False  # was refused for its calls a minute, or for those at a time: a ceiling was learned
    is_crowded: bool = False
    epoch: int = 0
    filled_no: int = 0
    filled_cell: int = -1

    def entries(self) -> Iterator[Entry]:
        return (entry for logged in self.log for entry in logged.entries)

    def trailing(self, at: timedelta, seconds: float) -> list[Entry]:
        """What may be sent within the window that ends when a call granted now is sent at once."""
        return [entry for entry in self.entries() if entry.sent_by > at - timedelta(seconds=seconds)]

    def today(self, now: datetime) -> list[Entry]:
        midnight = self.limits.midnight(now)
        return [entry for entry in self.entries() if entry.clock >= midnight]

    def broken(self, at: timedelta, now: datetime, rpm: int) -> list[str]:
        """Which limits are exceeded after a grant; `rpm` with the learned ceiling."""
        limits, minute, today = self.limits, self.trailing(at, WINDOW_S), self.today(now)
        used: dict[str, tuple[int, float | None]] = {
            "rpm": (sum(entry.calls for entry in minute), rpm),
            "tpm": (sum(entry.tokens for entry in minute), limits.tpm),
            "output_tpm": (sum(entry.output_tokens for entry in minute), limits.output_tpm),
            "rpd": (sum(entry.calls for entry in today), limits.rpd),
            "tpd": (sum(entry.day_tokens for entry in today), limits.tpd),
        }
        for seconds, share in (limits.burst_windows or {}).items():
            short = sum(entry.calls for entry in self.trailing(at, float(seconds)))
            used[f"{seconds} s"] = short, max(1, math.floor(rpm * share))
        return [f"{name}: {n} > {limit}" for name, (n, limit) in used.items() if limit is not None and n > limit]

    def over_by_more_than_was_underestimated(self) -> list[str]:
        """Windows in which more was used than tpm and all that the charges in them had fallen short of the use."""
        found = []
        for newest in self.log:
            since = newest.at - timedelta(seconds=WINDOW_S)
            window = [entry for entry in self.entries() if entry.sent_by > since and entry.at <= newest.at]
            used = sum(entry.tokens for entry in window)
            short = sum(max(entry.tokens - entry.reserved, 0) for entry in window)
            if newest.tpm is not None and used > newest.tpm + short:
                found.append(f"{newest.at}: {used} > {newest.tpm} + {short}")
        return found

    def fill(self, entry_no: int, cell: int) -> None:
        """The ledger was filled after a step of the clock: its windows hold nothing that was charged before."""
        self.filled_no, self.filled_cell = entry_no, cell
        self.epoch += 1
        step = datetime.fromtimestamp((cell + 1) * CELL_S, UTC)
        for entry in self.entries():  # what the clock had not reached yet is of the day that it stepped back to
            entry.clock = min(entry.clock, step)

    def cells(self, since: int) -> Counter[tuple[int, str]]:
        """What the ledger must hold in each cell from there on."""
        held: Counter[tuple[int, str]] = Counter()
        for entry in self.entries():
            if entry.epoch == self.epoch and entry.cell >= since:
                for name in ("calls", "hot_calls", "tokens", "output_tokens"):
                    held[entry.cell, name] += getattr(entry, name)
        return +held
