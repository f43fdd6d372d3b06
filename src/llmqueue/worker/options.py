"""How a worker is told to run, and how it ended."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

from llmqueue.db.store import Stranded
from llmqueue.spill.file import Database


@dataclass(frozen=True, slots=True)
class WorkerOptions:
    """`models` None serves all; `drain_wait_s` None runs for ever, else ends when nothing can run within that time.

    `home` holds the spill, which is for `database` alone.
    `is_pooled`: `dsn` leads to a pooler; there is no listener then unless `listen_dsn` leads past it.
    """

    dsn: str
    listen_dsn: str | None
    is_pooled: bool
    backend_url: str
    slots: int
    models: Sequence[str] | None
    lease_s: float
    drain_s: float
    guard_s: float
    keep_attempts: timedelta
    drain_wait_s: float | None
    home: Path
    database: Database

    @property
    def can_listen(self) -> bool:
        return self.listen_dsn is not None or not self.is_pooled


@dataclass(frozen=True, slots=True)
class Report:
    """How a worker ended. `stranded` are tasks that a drain had to leave; None: it was not drained.

    Of the ends that are not settled, `spilled` lie in the file `spill` for the next start; the rest is lost.
    """

    unsettled: int
    spilled: int
    spill: Path
    stranded: Sequence[Stranded] | None
    is_outgrown: bool
