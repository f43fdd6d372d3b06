"""Logs once that the database is away, at most once a minute that it still is, and once that it is back.

tolerated() is how every loop of a worker survives an outage; Backoff is how it waits in between.
"""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import anyio

from llmqueue.errors import DatabaseUnable, DatabaseUnreachable, SchemaOutgrown, SqlError
from llmqueue.logs import Event, logger

REMIND_S = 60.0


@dataclass(slots=True)
class Tolerated:
    """`error` is what the block of `with outage.tolerated()` has raised, None: nothing."""

    error: DatabaseUnreachable | SqlError | None = None


class Outage:
    """One outage at a time; callers may report `began` and `ended` repeatedly."""

    def __init__(self) -> None:
        self._began_at: float | None = None
        self._logged_at = 0.0

    @contextmanager
    def tolerated(self) -> Iterator[Tolerated]:
        """Swallows an error of the database that may pass, and logs the outage. Any other error goes on."""
        tolerated = Tolerated()
        try:
            yield tolerated
        except (DatabaseUnreachable, SqlError) as error:
            tolerated.error = error
            self.began(error)

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


class Backoff:
    """Pauses between two tries, each up to twice as long as the last, with jitter."""

    def __init__(self, shortest_s: float, longest_s: float) -> None:
        self._shortest_s = self._pause_s = shortest_s
        self._longest_s = longest_s

    def reset(self) -> None:
        self._pause_s = self._shortest_s

    async def sleep(self) -> None:
        pause_s, self._pause_s = self._pause_s, min(2 * self._pause_s, self._longest_s)
        await anyio.sleep(random.uniform(pause_s / 2, pause_s))
