"""The steps of `init`: SQL text that `init` runs exactly as it prints it for psql."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

# A session that waits for ACCESS EXCLUSIVE blocks all later ones, so it waits no longer than this at a time.
LOCK_TIMEOUT_MS: Final = 80
LONGEST_LOCK_TIMEOUT_MS: Final = 200

# Settings of the session before the first step. The catalog prints names that depend on the search path.
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
    """One step. Its statements commit together, or each by itself if the server requires it."""

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
    """The plan of `init`; without steps there is nothing to change."""

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
            "-- A statement that ends with 'canceling statement due to lock timeout' met a long transaction:",
            "-- its step was rolled back. `llmqueue init` retries by itself; --dry-run prints the remaining steps.",
            "\\set ON_ERROR_STOP on",
            *(f"{statement};" for statement in SESSION),
            "",
        ]
        for number, step in enumerate(self.steps, 1):
            lines += [f"-- {number}. {step.title}", step.sql]
        return "\n".join(lines)
