"""The cheapest tier: one database for all tests of a function, each in a transaction that is rolled back."""

from __future__ import annotations

from collections.abc import Iterator

import psycopg
import pytest
from pytest_postgresql.executors import NoopExecutor

from llmqueue.forecast import simulated_clock
from tests.support.server import Server
from tests.support.sql import Queue, cloned, rolled_back


@pytest.fixture(scope="session")
def shared(server: Server, template: NoopExecutor) -> Iterator[str]:
    """The DSN of an installed database that nobody commits to."""
    with cloned(server, str(template.template_dbname), "shared") as dsn:
        with psycopg.connect(dsn, autocommit=True) as conn:
            conn.execute(simulated_clock.INSTALL)
        yield dsn


@pytest.fixture
def queue(shared: str) -> Iterator[Queue]:
    with rolled_back(shared) as opened:
        # A sequence is not rolled back, and a test of epochs may leave it beyond any fence that makes sense.
        opened.rows("select setval('llmqueue.fence_seq', 1, false)")
        yield opened
