"""Concurrent sessions: one runs in the background, and the test continues when the database shows that it waits."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, TypeVar

import psycopg

from tests.support.sql import Queue

T = TypeVar("T")
PATIENCE_S = 20.0


class Sessions:
    """Opens queues, each on its own connection, and runs actions that may have to wait in background threads."""

    def __init__(self, dsn: str) -> None:
        self._dsn = dsn
        self._threads = ThreadPoolExecutor()
        self._watcher = psycopg.connect(dsn, autocommit=True)
        self._connections: list[psycopg.Connection[Any]] = [self._watcher]

    def connect(self) -> psycopg.Connection[Any]:
        conn = psycopg.connect(self._dsn, autocommit=True)
        self._connections.append(conn)
        return conn

    def queue(self) -> Queue:
        """Returns a registered worker on the real clock."""
        return Queue(self.connect(), now=None)

    def start(self, action: Callable[[], T]) -> Future[T]:
        return self._threads.submit(action)

    def wait_until_waiting(self, conn: psycopg.Connection[Any]) -> None:
        """Returns once the backend of `conn` waits for a lock."""
        query = "select wait_event_type = 'Lock' from pg_stat_activity where pid = %s"
        self.eventually(lambda: self._watcher.execute(query, (conn.info.backend_pid,)).fetchone() == (True,))

    def wait_until_idle(self, conn: psycopg.Connection[Any]) -> None:
        """Returns once the backend of `conn` runs no statement."""
        query = "select state <> 'active' from pg_stat_activity where pid = %s"
        self.eventually(lambda: self._watcher.execute(query, (conn.info.backend_pid,)).fetchone() == (True,))

    def eventually(self, is_so: Callable[[], bool]) -> None:
        until = time.monotonic() + PATIENCE_S
        while not is_so():
            assert time.monotonic() < until, "the condition did not become true"
            time.sleep(0.002)

    def close(self) -> None:
        for conn in self._connections:
            conn.cancel()
            conn.close()
        self._threads.shutdown()


@contextmanager
def sessions(dsn: str) -> Iterator[Sessions]:
    opened = Sessions(dsn)
    try:
        yield opened
    finally:
        opened.close()
