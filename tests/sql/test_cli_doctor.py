"""`llmqueue doctor` names each fault with its remedy, and nothing else."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any, cast

import anyio
import psycopg
import pytest
from psycopg.conninfo import make_conninfo

from llmqueue.cli import checks
from tests.support.cli import run_cli
from tests.support.eventually import eventually

Connection = psycopg.Connection[Any]

NOWHERE = "http://127.0.0.1:9"


class Answering(BaseHTTPRequestHandler):
    def do_HEAD(self) -> None:
        self.send_response(404)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(scope="module")
def backend() -> Iterator[str]:
    server = HTTPServer(("127.0.0.1", 0), Answering)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def examine(dsn: str, backend_url: str = NOWHERE, **settings: Any) -> tuple[int, list[dict[str, Any]]]:
    done = run_cli(dsn, "doctor", "--json", backend_url=backend_url, **settings)
    assert done.err == ""
    return done.code, json.loads(done.out)


def of(findings: list[dict[str, Any]], check: str, state: str) -> dict[str, Any]:
    (found,) = [finding for finding in findings if finding["check"] == check and finding["state"] == state]
    return found


def unwell(findings: list[dict[str, Any]]) -> set[tuple[str, str]]:
    return {(finding["check"], finding["state"]) for finding in findings if finding["state"] != "ok"}


@pytest.fixture
def durable(conn: Connection) -> Iterator[None]:
    """The tests' server has no fsync; for once it has."""
    conn.execute("alter system set fsync = on")
    conn.execute("select pg_reload_conf()")
    eventually(lambda: conn.execute("show fsync").fetchone() == ("on",))
    yield
    conn.execute("alter system set fsync = off")
    conn.execute("select pg_reload_conf()")


@pytest.mark.usefixtures("durable")
def test_a_sound_system_has_no_problem_and_ends_with_0(installed: str, conn: Connection, backend: str) -> None:
    conn.execute("insert into llmqueue.model_config (model, rpm) values ('m', 60)")
    conn.execute("select llmqueue.register(gen_random_uuid(), 'w', '0.1.0', null, 20, 0.5)")

    code, findings = examine(installed, backend)

    assert (code, unwell(findings)) == (0, set())
    assert of(findings, "schema", "ok")["found"].startswith("public.tasks is adopted")
    assert of(findings, "backend", "ok")["found"] == f"{backend} can be reached"


def test_every_finding_that_is_not_well_has_a_remedy(installed: str) -> None:
    _, findings = examine(installed)

    assert [finding for finding in findings if finding["state"] != "ok" and not finding["remedy"]] == []


def test_a_database_that_cannot_be_reached_is_a_problem_and_the_backend_is_still_looked_at(backend: str) -> None:
    dsn = make_conninfo(host="127.0.0.1", port=9, user="u", password="hunter2", dbname="d")

    code, findings = examine(dsn, backend)

    assert code == 1
    assert of(findings, "database", "problem")["found"].startswith("cannot reach the database at host 127.0.0.1")
    assert of(findings, "backend", "ok")
    assert "hunter2" not in json.dumps(findings)


def test_a_backend_that_cannot_be_reached_is_a_problem(installed: str) -> None:
    code, findings = examine(installed)

    assert of(findings, "durability", "problem")["remedy"].startswith("alter system set fsync = on")
    found = of(findings, "backend", "problem")
    assert code == 1
    assert found["found"].endswith("connection refused")
    assert "LLMQUEUE_BACKEND_URL" in found["remedy"]


def test_a_database_without_init_is_told_so(database: str) -> None:
    code, findings = examine(database)

    assert code == 1
    assert of(findings, "schema", "problem")["remedy"] == "Run: llmqueue init"


def test_what_was_dropped_or_edited_by_hand_is_named(installed: str, conn: Connection) -> None:
    conn.execute("drop index llmqueue_delayed")
    conn.execute("create or replace function llmqueue_internal.lock_space() returns integer language sql as 'select 1'")

    code, findings = examine(installed)

    found = of(findings, "schema", "problem")
    assert code == 1
    assert "build the index llmqueue_delayed" in found["found"]
    assert "functions" in found["found"]
    assert found["remedy"] == "llmqueue init"


def test_a_long_transaction_of_somebody_is_named(
    installed: str, conn: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checks, "LONG_TRANSACTION_S", 0)
    with psycopg.connect(installed) as other:
        other.execute("select 1")
        pid = other.info.backend_pid

        _, findings = examine(installed)

        found = of(findings, "transactions", "warning")
    assert f"pid {pid}, idle in transaction" in found["found"]
    assert found["remedy"] == f"end it: select pg_terminate_backend({pid});"


@pytest.mark.parametrize(("late", "state"), [(19, "ok"), (60, "warning")])
def test_grants_that_come_too_late_are_named_when_they_are_many(
    installed: str, conn: Connection, late: int, state: str
) -> None:
    conn.execute(
        "insert into llmqueue.attempt (fence, task_id, model, worker, attempt_no, granted_at, cell, rpm, ended_at,"
        " outcome, error_class)"
        " select n, n, 'm', gen_random_uuid(), 1, now(), 0, 60, now(), 'released',"
        " case when n <= %s then 'late_grant' end from generate_series(1, 1000) n",
        (late,),
    )

    _, findings = examine(installed)

    assert of(findings, "late grants", state)["found"].startswith(f"{late} of the ")


def test_models_and_workers_that_are_missing_are_named(installed: str, conn: Connection) -> None:
    _, findings = examine(installed)
    assert of(findings, "models", "warning")["remedy"] == "llmqueue models set NAME --rpm N"
    assert of(findings, "workers", "warning")["remedy"] == "llmqueue worker"

    conn.execute("insert into llmqueue.model_config (model, rpm, enabled) values ('m', 60, false)")
    for version in ("0.1.0", "0.2.0"):
        conn.execute("select llmqueue.register(gen_random_uuid(), 'w', %s, null, 20, 0.5)", (version,))
    _, findings = examine(installed)
    assert of(findings, "models", "warning")["found"] == "none of 1 may take tasks: paused, or rpm 0"
    assert "0.1.0, 0.2.0" in of(findings, "workers", "warning")["found"]


def test_a_model_with_a_limit_of_0_may_take_nothing(installed: str, conn: Connection) -> None:
    conn.execute("insert into llmqueue.model_config (model, rpm, tpm) values ('m', 60, 0)")
    conn.execute("insert into llmqueue.model_config (model, rpm, max_concurrency) values ('n', 60, 0)")

    _, findings = examine(installed)

    assert of(findings, "models", "warning")["found"].startswith("none of 2 may take tasks")


class Reachable:
    async def probe(self) -> str | None:
        return None


@pytest.mark.parametrize(
    ("url", "is_named"),
    [
        ("http://models.example", True),
        ("http://127.0.0.1:80", False),
        ("http://[::1]", False),
        ("https://models", False),
    ],
)
def test_a_token_in_the_clear_is_named(url: str, is_named: bool) -> None:
    findings = anyio.run(lambda: checks.examine_backend(cast(Any, Reachable()), url, has_token=True))

    assert any(finding.check == "backend token" for finding in findings) is is_named


def test_a_role_without_rights_is_told_what_could_not_be_seen(installed: str, conn: Connection) -> None:
    conn.execute("create role onlooker login")
    try:
        code, findings = examine(f"{installed} user=onlooker")
    finally:
        conn.execute("drop role onlooker")

    assert code == 1
    assert of(findings, "schema", "problem")["found"].startswith('user "onlooker" has no rights on schema llmqueue')


def test_a_wrong_setting_is_named_and_wrong_usage(installed: str) -> None:
    done = run_cli(installed, "doctor", lease_s="soon")

    assert (done.code, done.out) == (2, "")
    assert done.err.startswith("llmqueue: LLMQUEUE_LEASE_S: must")
