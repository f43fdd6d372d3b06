"""Logs an outage of the database: its begin once, its duration at most once a minute, its end once."""

from __future__ import annotations

import time

from llmqueue.errors import DatabaseUnable, DatabaseUnreachable, SchemaOutgrown
from llmqueue.logs import Event, logger

REMIND_S = 60.0


class Outage:
    """One outage at a time; callers may report `began` and `ended` repeatedly."""

    def __init__(self) -> None:
        self._began_at: float | None = None
        self._logged_at = 0.0

    def began(self, error: Exception) -> None:
        if isinstance(error, SchemaOutgrown):
            return  # no outage: the daemon logs it once and ends
        now = time.monotonic()
        if self._began_at is None:
            self._began_at = now
        elif now - self._logged_at < REMIND_S:
            return
        self._logged_at = now
        fields = {"error": str(error), "seconds": round(now - self._began_at), "effect": "trying again"}
        if isinstance(error, DatabaseUnreachable) and not isinstance(error, DatabaseUnable):
            logger().error(Event.DATABASE_UNREACHABLE, **fields)
        else:
            logger().error(Event.DATABASE_FAILED, **fields)

    def ended(self) -> None:
        if self._began_at is not None:
            logger().info(Event.DATABASE_BACK, seconds=round(time.monotonic() - self._began_at))
            self._began_at = None
