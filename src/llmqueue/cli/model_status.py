"""A row of llmqueue.model_status, and what `models` and `status` say of it."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import TYPE_CHECKING

from llmqueue.cli.output import age, duration, moment

if TYPE_CHECKING:
    import psycopg
    from psycopg.rows import TupleRow

# What a new model has; `summary` names only what is different.
USUAL_WEIGHT, USUAL_HOT_SHARE = 1, 0.1
# The end of a model's line for a program, in an order that stays.
LINE_END = (
    *("effective_rpm", "tpm", "tokens_60s", "output_tpm", "output_tokens_60s", "rpd", "calls_today", "tpd"),
    *("tokens_today", "effective_concurrency", "cooldown_until", "cooldown_reason", "on_crash"),
    *("dispatch", "max_batch"),
)


@dataclass(frozen=True, slots=True)
class ModelStatus:
    """A row of llmqueue.model_status. The properties are None where there is nothing to show."""

    model: str
    enabled: bool
    rpm: int
    max_concurrency: int | None
    timeout: timedelta
    calls_60s: int
    use_pct: Decimal | None
    running: int
    ready: int
    ready_is_estimate: bool
    oldest_ready_at: datetime | None
    tpm: int | None
    output_tpm: int | None
    token_mode: str
    weight: float
    hot_share: float
    effective_rpm: int
    tokens_60s: int
    output_tokens_60s: int
    tpm_use_pct: Decimal | None
    rpd: int | None
    calls_today: int
    tpd: int | None
    tokens_today: int
    cooldown_until: datetime | None
    cooldown_reason: str | None
    burst_windows: dict[str, float] | None
    max_output: int | None
    quota_timezone: str
    effective_concurrency: int | None
    on_crash: str
    dispatch: str
    max_batch: int

    @property
    def is_enabled(self) -> bool:
        """As llmqueue_internal.is_enabled(): not paused. A model in cooldown is: the cooldown ends by itself."""
        return self.enabled and not self.zeros

    @property
    def zeros(self) -> list[str]:
        """The limits that are 0, and so pause the model."""
        names = ("rpm", "tpm", "output_tpm", "rpd", "tpd", "max_concurrency")
        return [name for name in names if getattr(self, name) == 0]

    @property
    def parks(self) -> str | None:
        """Shown only where it is not the usual."""
        return self.on_crash if self.on_crash != "retry" else None

    @property
    def sends(self) -> str | None:
        """Shown only where it is not the usual."""
        return self.dispatch if self.dispatch != "auto" else None

    @property
    def lowered_rpm(self) -> int | None:
        """What is left of rpm after refusals."""
        return self.effective_rpm if self.effective_rpm < self.rpm else None

    @property
    def lowered_concurrency(self) -> int | None:
        """How many calls may be in flight after the model was overloaded."""
        return None if self.effective_concurrency == self.max_concurrency else self.effective_concurrency

    @property
    def tokens_of_tpm(self) -> str | None:
        return _of(self.tokens_60s, self.tpm)

    @property
    def output_of_tpm(self) -> str | None:
        return _of(self.output_tokens_60s, self.output_tpm)

    @property
    def calls_of_rpd(self) -> str | None:
        return _of(self.calls_today, self.rpd)

    @property
    def tokens_of_tpd(self) -> str | None:
        return _of(self.tokens_today, self.tpd)

    @property
    def cooldown(self) -> str | None:
        """One sentence about a model in cooldown."""
        if self.cooldown_until is None:
            return None
        because = f" because of {self.cooldown_reason}" if self.cooldown_reason else ""
        if self.cooldown_until > datetime.now(UTC):
            said = f"is in cooldown until {moment(self.cooldown_until)}{because}: it ends by itself"
        else:
            probe = "its next call is a probe, which ends it if it succeeds"
            said = f"was in cooldown until {moment(self.cooldown_until)}{because}: {probe}"
        return f"model {self.model} {said}; llmqueue models resume {shlex.quote(self.model)} ends it now"


def _of(used: int, limit: int | None) -> str | None:
    return None if limit is None else f"{used:,} of {limit:,}"


def cooldown_ends(until: object) -> str:
    """When a cooldown ends: `in 40 s`, or with its next call."""
    if not isinstance(until, datetime):
        return "-"
    return age(until) if until > datetime.now(UTC) else "next call"


def read_models(conn: psycopg.Connection[TupleRow]) -> list[ModelStatus]:
    """Every configured model, by name."""
    from psycopg.rows import class_row

    with conn.cursor(row_factory=class_row(ModelStatus)) as cursor:
        return cursor.execute(
            """
            select model, enabled, rpm, max_concurrency, timeout, calls_60s, use_pct, running, ready, ready_is_estimate,
                   oldest_ready_at, tpm, output_tpm, token_mode, weight, hot_share, effective_rpm, tokens_60s,
                   output_tokens_60s, tpm_use_pct, rpd, calls_today, tpd, tokens_today, cooldown_until, cooldown_reason,
                   burst_windows, max_output, quota_timezone, effective_concurrency, on_crash,
                   dispatch, max_batch
              from llmqueue.model_status order by model
            """
        ).fetchall()


def summary(model: ModelStatus) -> str:
    """What a model may take, as one line."""
    return f"{model.model}: {', '.join(_limits(model))}"


def _limits(model: ModelStatus) -> Iterator[str]:
    yield f"{model.rpm:,} calls per minute"
    for seconds, share in sorted((model.burst_windows or {}).items(), key=lambda window: -float(window[0])):
        yield f"at most {max(1, int(model.rpm * share)):,} in {seconds} s"
    if model.rpd is not None:
        yield f"{model.rpd:,} per day"
    yield from _tokens(model)
    if model.rpd is not None or model.tpd is not None:
        yield f"a day begins at midnight in {model.quota_timezone}"
    most = model.max_concurrency
    yield "no limit on calls in flight" if most is None else f"at most {most:,} calls in flight"
    yield f"timeout {duration(model.timeout.total_seconds())}"
    if model.weight == 0:
        yield "not in the default pool"
    elif model.weight != USUAL_WEIGHT:
        yield f"weight {model.weight:g}"
    if model.hot_share != USUAL_HOT_SHARE:
        yield f"hot share {model.hot_share:g}"
    if model.sends == "single":
        yield "a call per task"
    elif model.sends:
        yield f"up to {model.max_batch:,} tasks in a call"
    if model.parks:
        yield "parks calls of dead workers"
    if not model.enabled:
        yield "paused"


def _tokens(model: ModelStatus) -> Iterator[str]:
    if model.tpm is not None:
        yield f"{model.tpm:,} tokens per minute ({model.token_mode})"
    if model.output_tpm is not None:
        yield f"{model.output_tpm:,} output tokens per minute"
    if model.tpd is not None:
        yield f"{model.tpd:,} tokens per day"
    if model.max_output is not None:
        yield f"{model.max_output:,} output tokens per call unless its params say so"


def doubts(model: ModelStatus, *, is_pool: bool) -> Iterator[str]:
    """What is allowed, and hardly meant."""
    if is_pool:
        yield f'"{model.model}" is also a pool: tasks of the model go to the pool\'s models too'
    limit = {"sum": "tpm", "max": "tpm", "actual": "tpm", "split": "output_tpm"}.get(model.token_mode)
    most = None if limit is None else getattr(model, limit)
    if model.max_output is not None and most and model.max_output > most:
        yield (
            f"max_output {model.max_output:,} is more than {limit} {most:,}: a call whose params name no maximum never "
            "fits, and its task ends as a dead letter"
        )
    if model.token_mode == "split" and model.tpm is None and model.output_tpm is None:  # noqa: S105 - no password
        yield "token mode split without --tpm and --output-tpm limits nothing"
