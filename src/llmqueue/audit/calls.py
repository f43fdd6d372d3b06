"""A call as the attempt log has it."""

from __future__ import annotations

from typing import NamedTuple

# What is limited, in the order of Call.limits.
KINDS = ("calls", "tokens", "output_tokens")

LATE_GRANT = "late_grant"
RATE_LIMITED = "rate_limited"
# Error classes of a refusal that has used up the task's patience and ended as an attempt (retry.sql).
REFUSALS = frozenset({RATE_LIMITED, "unavailable", "overloaded", "credentials_refused"})
FAILED = frozenset({"retried", "refused", "buried", "late"})


# A named tuple: a frozen dataclass takes four times as long to make, and there are millions.
class Call(NamedTuple):
    """One attempt. Times are microseconds since 1970, None: not known.

    `tokens` is all that was charged against tpm before sending, topped up or not, `tokens_final` what that became when
    the usage was known.
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
        """Whether nothing was sent and the charge went back.

        An attempt that failed before anything was sent has no moment of sending, but an error; only complete() and
        sweep() leave the error out, and their calls may have been sent.
        """
        if self.outcome == "released":
            return True
        return self.sent_us is None and self.error_class is not None and self.outcome in FAILED

    @property
    def is_refusal(self) -> bool:
        return self.outcome == "refused" or self.error_class in REFUSALS

    @property
    def limits(self) -> tuple[int | None, ...]:
        """By KINDS; None: no limit."""
        return self.rpm, self.tpm, self.output_tpm
