"""The steps of `init`: SQL text that runs as it is printed, here or through psql."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

# Somebody who waits for ACCESS EXCLUSIVE holds up everybody behind: never for longer than this at a time.
LOCK_TIMEOUT_MS: Final = 80
LONGEST_LOCK_TIMEOUT_MS: Final = 200

# What the session is told before the first step: the names that the catalog prints depend on the search path.
SESSION: Final = (
    "set search_path = pg_catalog, pg_temp",
    "set statement_timeout = 0",
    "set lock_timeout = 0",
    "set idle_in_transaction_session_timeout = 0",
    "set check_function_bodies = off",
    "set client_min_messages = warning",
)


@dataclass(frozen=True, slots=True)
class Step:
    """One step: its statements commit together, or each by itself where the server asks for that."""

    key: str
    title: str
    statements: tuple[str, ...]
    is_transaction: bool = True

    @property
    def sql(self) -> str:
        """The step as psql runs it."""
        body = "\n".join(f"{statement.strip().rstrip(';')};" for statement in self.statements)
        if not self.is_transaction:
            return body + "\n"
        return f"begin;\nset local lock_timeout = '{LOCK_TIMEOUT_MS}ms';\n{body}\ncommit;\n"


@dataclass(frozen=True, slots=True)
class Plan:
    """What `init` would do: nothing when there are no steps."""

    table: str
    steps: tuple[Step, ...]
    warnings: tuple[str, ...]

    def script(self) -> str:
        """Return the plan as one script for psql."""
        lines = [f"-- llmqueue init: {self.table}, {len(self.steps)} steps. Nothing has been changed."]
        lines += [f"-- Warning: {line}" for warning in self.warnings for line in warning.splitlines()]
        if not self.steps:
            return "\n".join([*lines, "-- Nothing to change.", ""])
        lines += [
            "-- A statement that ends with 'canceling statement due to lock timeout' met a long transaction: nothing",
            "-- of its step was kept. `llmqueue init` tries again by itself; in psql, ask --dry-run for the rest.",
            "\\set ON_ERROR_STOP on",
            *(f"{statement};" for statement in SESSION),
            "",
        ]
        for number, step in enumerate(self.steps, 1):
            lines += [f"-- {number}. {step.title}", step.sql]
        return "\n".join(lines)
