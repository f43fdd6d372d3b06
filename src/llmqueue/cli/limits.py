"""The options of `llmqueue models set`: read into columns of llmqueue.model_config, and what is wrong with them."""

from __future__ import annotations

import math
import re
from enum import StrEnum
from fractions import Fraction
from typing import TYPE_CHECKING, Final

from llmqueue.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import psycopg

NONE: Final = "none"
LARGEST_INTEGER: Final = 2**31 - 1
LARGEST_BIGINT: Final = 2**63 - 1
BIGINTS: Final = frozenset({"tpm", "output_tpm", "tpd"})
LEAST_S: Final = 0.000001  # Postgres knows no shorter interval
YEAR_S: Final = 31_536_000
MOST_HOT: Final = 0.9
DIGITS: Final = re.compile(r"[0-9]{1,19}")
WINDOW: Final = re.compile(r"(?P<seconds>[0-9]{1,2}([.][0-9]{1,3})?)=(?P<share>[0-9.]{1,20}(/[0-9]{1,9})?)")

COUNT: Final = "a whole number of at least 0, or none"
# What the columns take, as people are told; the CHECK constraints of model_config say the same.
RULES: Final = {
    "rpm": "a whole number of at least 0",
    "max_concurrency": COUNT,
    "tpm": COUNT,
    "output_tpm": COUNT,
    "rpd": COUNT,
    "tpd": COUNT,
    "max_output": "a whole number of at least 1, or none",
    "token_mode": "input, sum, max, split or actual",
    "timeout": "a number of seconds above 0 and at most a year",
    "weight": "a number of at least 0 (0 keeps the model out of the default pool)",
    "hot_share": f"a number from 0 to {MOST_HOT}",
    "on_crash": "retry or park",
    "dispatch": "auto, single or batch",
    "max_batch": "a whole number from 1 to 1000",
    "quota_timezone": "a time zone such as UTC or America/Los_Angeles (all: select name from pg_timezone_names)",
    "burst_windows": (
        "SECONDS=SHARE, such as 10=0.1667 or 10=1/6: seconds above 0 and below 100 with at most three decimals, and a "
        "share of rpm above 0 and at most 1; or none"
    ),
}
OPTIONS: Final = {column: f"--{column.replace('_', '-')}" for column in RULES} | {"burst_windows": "--burst-window"}
# The constraint that refuses a column's value.
CONSTRAINTS: Final = {
    "rpm_is_not_negative": "rpm",
    "max_concurrency_is_not_negative": "max_concurrency",
    "timeout_is_positive": "timeout",
    "tpm_is_not_negative": "tpm",
    "output_tpm_is_not_negative": "output_tpm",
    "token_mode_is_known": "token_mode",
    "max_output_is_positive": "max_output",
    "rpd_is_not_negative": "rpd",
    "tpd_is_not_negative": "tpd",
    "quota_timezone_is_known": "quota_timezone",
    "burst_windows_are_shares_by_seconds": "burst_windows",
    "weight_is_not_negative": "weight",
    "hot_share_is_a_share": "hot_share",
    "on_crash_is_known": "on_crash",
    "dispatch_is_known": "dispatch",
    "max_batch_is_positive": "max_batch",
}
NAMELESS: Final = "model_has_a_name"
OF_SPLIT: Final = "output_tpm_is_of_split"


class TokenMode(StrEnum):
    """What counts against tpm."""

    INPUT = "input"
    SUM = "sum"
    MAX = "max"
    SPLIT = "split"
    ACTUAL = "actual"


class Dispatch(StrEnum):
    """How a model's tasks are sent."""

    AUTO = "auto"
    SINGLE = "single"
    BATCH = "batch"


class OnCrash(StrEnum):
    """What becomes of a call that may have been sent when its worker dies."""

    RETRY = "retry"
    PARK = "park"


def read_columns(
    numbers: Mapping[str, float | None], counts: Mapping[str, str | None], burst_windows: Sequence[str] | None
) -> dict[str, object]:
    """Returns the columns that were given, by name; `counts` may say none. Raises UsageError for a wrong value."""
    columns: dict[str, object] = {column: _number(column, n) for column, n in numbers.items() if n is not None}
    columns |= {column: _count(column, text) for column, text in counts.items() if text is not None}
    if burst_windows:
        columns["burst_windows"] = _burst_windows(burst_windows)
    return columns


def refused(error: psycopg.Error, columns: Mapping[str, object]) -> UsageError:
    """What an UPDATE of model_config raised, as an error of the option that it is about."""
    constraint = error.diag.constraint_name
    if constraint == NAMELESS:
        return UsageError("NAME must not be empty")
    if constraint == OF_SPLIT:
        return UsageError(
            "an --output-tpm is for --token-mode split, which counts input and output by themselves: give both, "
            "or --output-tpm none"
        )
    if error.sqlstate == "22023" and "quota_timezone" in columns:  # no such time zone: raised before the constraint
        return wrong("quota_timezone", columns["quota_timezone"])
    column = CONSTRAINTS.get(constraint or "")
    if column is None:
        return UsageError(f"the database refuses these limits: {error.diag.message_primary}")
    return wrong(column, columns.get(column))


def wrong(column: str, value: object) -> UsageError:
    return UsageError(f"{OPTIONS[column]} must be {RULES[column]} (got {value!r})")


def _number(column: str, number: float) -> object:
    is_right = {
        "timeout": LEAST_S <= number <= YEAR_S,
        "weight": 0 <= number < math.inf,
        "hot_share": 0 <= number <= MOST_HOT,
    }
    if not is_right[column]:
        raise wrong(column, number)
    return f"{number:.6f} seconds" if column == "timeout" else number


def _count(column: str, text: str) -> int | None:
    if text == NONE:
        return None
    least = 1 if column == "max_output" else 0
    largest = LARGEST_BIGINT if column in BIGINTS else LARGEST_INTEGER
    if not DIGITS.fullmatch(text) or not least <= int(text) <= largest:
        raise wrong(column, text)
    return int(text)


def _burst_windows(texts: Sequence[str]) -> dict[str, float] | None:
    if list(texts) == [NONE]:
        return None
    windows: dict[str, float] = {}
    for text in texts:
        given = WINDOW.fullmatch(text)
        if given is None:
            raise wrong("burst_windows", text)
        seconds, share = given["seconds"], _share(given["share"])
        if float(seconds) == 0 or not 0 < share <= 1:
            raise wrong("burst_windows", text)
        if seconds in windows:
            raise UsageError(f"--burst-window {text}: {seconds} s is given twice")
        windows[seconds] = share
    return windows


def _share(text: str) -> float:
    """A share written as a number or as a fraction; 0 for what is neither."""
    try:
        return float(Fraction(text))
    except (ValueError, ZeroDivisionError):
        return 0
