"""The columns that llmqueue keeps in the tasks table, and the words of a task's status."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

INTEGERS: Final = frozenset({"smallint", "integer", "bigint"})
STRINGS: Final = frozenset({"text", "character varying"})
TIMES: Final = frozenset({"timestamp with time zone"})
JSON: Final = frozenset({"json", "jsonb"})


@dataclass(frozen=True, slots=True)
class OurColumn:
    """A column that `init` adds, or an existing one that it uses if `--column` names it."""

    name: str
    type: str
    accepts: frozenset[str] | None  # base types that an existing column may have; None: any scalar
    default: str | None = None
    is_cleared: bool = False  # llmqueue writes null to it, so it cannot be NOT NULL

    @property
    def accepted(self) -> str:
        """The types an existing column may have, for messages."""
        return "any scalar type" if self.accepts is None else " or ".join(sorted(self.accepts))


# Defaults are constants or now(), never volatile functions, so that ADD COLUMN rewrites no row.
OUR_COLUMNS: Final = (
    OurColumn("model", "text", STRINGS),
    OurColumn("priority", "smallint", INTEGERS, default="0"),
    OurColumn("params", "jsonb", JSON),
    OurColumn("run_at", "timestamp with time zone", TIMES, is_cleared=True),
    OurColumn("deadline_at", "timestamp with time zone", TIMES),
    OurColumn("attempts", "integer", INTEGERS, default="0"),
    OurColumn("max_attempts", "integer", INTEGERS),
    OurColumn("user_id", "text", None),
    OurColumn("error", "text", STRINGS, is_cleared=True),
    OurColumn("input_tokens", "integer", INTEGERS, is_cleared=True),
    OurColumn("output_tokens", "integer", INTEGERS, is_cleared=True),
    OurColumn("created_at", "timestamp with time zone", TIMES, default="now()"),
    OurColumn("started_at", "timestamp with time zone", TIMES, is_cleared=True),
    OurColumn("finished_at", "timestamp with time zone", TIMES, is_cleared=True),
    OurColumn("fence", "bigint", frozenset({"bigint"}), is_cleared=True),
    OurColumn("restarts", "integer", INTEGERS, default="0"),
)
# With --own-status: the owner's status column stays unchanged, and ours holds llmqueue's status of the task.
OWN_STATUS: Final = OurColumn("status", "text", STRINGS, is_cleared=True)
OWN_STATUS_COLUMN: Final = "llmqueue_status"

OUR_NAMES: Final = tuple(column.name for column in OUR_COLUMNS)
MAPPED_FOUR: Final = ("id", "prompt", "answer", "status")
# The order of the columns of llmqueue.task.
VIEW_COLUMNS: Final = (*MAPPED_FOUR, *OUR_NAMES)

QUEUED: Final = "unsolved"
DONE: Final = "solved"
STATUSES: Final = (QUEUED, "running", DONE, "failed", "cancelled", "delayed")


def ours(own_status: bool) -> tuple[OurColumn, ...]:
    """Return llmqueue's columns in an adoption with or without a status column of its own."""
    return (*OUR_COLUMNS, OWN_STATUS) if own_status else OUR_COLUMNS
