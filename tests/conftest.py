"""Fixtures: a real Postgres of the requested version (--pg), and a fresh database per test, cloned from a template."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from typing import Any

import psycopg
import pytest
from hypothesis import HealthCheck, settings
from psycopg import sql
from psycopg.conninfo import make_conninfo
from pytest_postgresql import factories
from pytest_postgresql.executors import NoopExecutor

from llmqueue.install.adopt import AdoptionSpec, install
from tests.support.server import Server, start_server

DATABASE_NUMBER = count(1)

# Seconds for tests with these marks, instead of pyproject.toml's `timeout`; 0: none.
TIMEOUTS_S = {"soak": 0, "slow": 1800}

# No deadline of hypothesis' own: how long an example takes says how busy the machine is. tests/properties has another.
settings.register_profile(
    "tests", deadline=None, derandomize=True, print_blob=True, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("tests")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--pg", default="18", choices=["15", "16", "18"], help="PostgreSQL version to test on")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    # Real processes first, each tier in its random order: what is left for the last of several workers is short then.
    items.sort(key=lambda item: item.get_closest_marker("system") is None)
    for item in items:
        marks = [mark for mark in TIMEOUTS_S if item.get_closest_marker(mark)]
        if marks and not item.get_closest_marker("timeout"):
            item.add_marker(pytest.mark.timeout(TIMEOUTS_S[marks[0]]))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Names the order: -q hides the header that does."""
    if (seed := config.getoption("randomly_seed", None)) is not None:
        terminalreporter.write_line(f"this order again: --randomly-seed={seed}")


@pytest.fixture(scope="session")
def server(request: pytest.FixtureRequest) -> Iterator[Server]:
    with start_server(int(request.config.getoption("--pg"))) as started:
        yield started


def _install(**connection: Any) -> None:
    wanted = {name: connection[name] for name in ("host", "port", "user", "dbname")}
    install(make_conninfo(**wanted), AdoptionSpec())


template = factories.postgresql_noproc(depends_on="server", dbname="llmqueue", load=[_install])


@pytest.fixture
def database(server: Server) -> Iterator[str]:
    """The DSN of a fresh, empty database."""
    with _database(server, "template1") as dsn:
        yield dsn


@pytest.fixture
def installed(server: Server, template: NoopExecutor) -> Iterator[str]:
    """The DSN of a fresh database with the default tasks table."""
    with _database(server, template.template_dbname) as dsn:
        yield dsn


@contextmanager
def _database(server: Server, template_name: str) -> Iterator[str]:
    name = f"test_{next(DATABASE_NUMBER)}"
    with psycopg.connect(server.dsn(), autocommit=True) as connection:
        create = sql.SQL("create database {} template {}")
        connection.execute(create.format(sql.Identifier(name), sql.Identifier(template_name)))
        try:
            yield server.dsn(name)
        finally:
            connection.execute(sql.SQL("drop database {} with (force)").format(sql.Identifier(name)))


@pytest.fixture
def conn(installed: str) -> Iterator[psycopg.Connection[tuple[object, ...]]]:
    """An autocommit connection to a fresh installed database."""
    with psycopg.connect(installed, autocommit=True) as connection:
        yield connection


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"
