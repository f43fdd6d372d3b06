"""A call, as recorded in the attempt log."""

from __future__ import annotations

from typing import NamedTuple

# The limited quantities, in the order of Call.limits.
KINDS = ("calls", "tokens", "output_tokens")

LATE_GRANT = "late_grant"
RATE_LIMITED = "rate_limited"
# Error classes of a refusal that ended as an attempt, after the task's free retries (retry.sql).
REFUSALS = frozenset({RATE_LIMITED, "unavailable", "overloaded", "credentials_refused"})
FAILED = frozenset({"retried", "refused", "buried", "late"})


# A named tuple, because a frozen dataclass takes four times as long to create, and there are millions of calls.
class Call(NamedTuple):
    """One attempt. Times are microseconds since 1970; None: unknown.

    `tokens` is the whole charge against tpm before sending, with any top-up; `tokens_final` is the charge after the
    correction by the usage.
    """

    model: str
    granted_us: int
    rpm: int
    sent_us: int | None = None
    ended_us: int | None = None
    outcome: str | None = None
    error_class: str | None = None
    tpm: int | None = None
    output_tpm: int | None = None
    tokens: int | None = None
    output_tokens: int | None = None
    tokens_final: int | None = None
    output_tokens_final: int | None = None

    @property
    def is_unsent(self) -> bool:
        """Whether nothing was sent and the charge was refunded.

        An attempt that failed before sending has an error and no moment of sending. Only complete() and sweep() record
        no error, and their calls may have been sent.
        """
        if self.outcome == "released":
            return True
        return self.sent_us is None and self.error_class is not None and self.outcome in FAILED

    @property
    def is_refusal(self) -> bool:
        return self.outcome == "refused" or self.error_class in REFUSALS

    @property
    def limits(self) -> tuple[int | None, ...]:
        """The limits in the order of KINDS; None: no limit."""
        return self.rpm, self.tpm, self.output_tpm
