"""Hypothesis on one connection, a rollback per example. LLMQUEUE_TEST_EXAMPLES=5000 looks longer."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest
from hypothesis import HealthCheck, settings
from pytest_postgresql.executors import NoopExecutor

from tests.support.server import Server
from tests.support.sql import cloned

settings.register_profile(
    "llmqueue",
    max_examples=int(os.environ.get("LLMQUEUE_TEST_EXAMPLES", "80")),
    deadline=None,
    # The usual run is the same each time: CI is red for a change and not for a draw. More examples are drawn anew.
    derandomize="LLMQUEUE_TEST_EXAMPLES" not in os.environ,
    # The connection outlives an example; the transaction does not.
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large],
    print_blob=True,
)
settings.load_profile("llmqueue")

BACKLOG = 600


@pytest.fixture(scope="session")
def backlog(server: Server, template: NoopExecutor) -> Iterator[psycopg.Connection[Any]]:
    """A connection to a database with BACKLOG tasks in the default pool, for transactions that are rolled back."""
    with cloned(server, str(template.template_dbname), "properties") as dsn, psycopg.connect(dsn) as conn:
        conn.execute("insert into tasks (prompt) select 'why?' from generate_series(1, %s)", (BACKLOG,))
        conn.commit()
        yield conn
