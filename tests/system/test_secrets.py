"""TLS to the database, and secrets that must never appear: passwords, keys, prompts and answers."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import psycopg
import pytest
from aiohttp import web

from llmqueue.install.rights import WORKER
from tests.support import processes
from tests.support.adoption import adopt, run, value
from tests.support.cli import Result, run_cli
from tests.support.eventually import eventually
from tests.support.server import bin_path_of_15
from tests.support.serving import serving
from tests.support.tls import TlsServer, start_tls_server

pytestmark = pytest.mark.system

PASSWORD = "Xpassword-of-the-database"
WRONG = "Xpassword-that-is-wrong"
FROM_LIBPQ = "Xpassword-in-PGPASSWORD"
KEY = "Xpassword-of-a-key-file"
TOKEN = "Xtoken-of-the-backend"
PROMPT = "Xprompt that nobody may see"
ANSWER = "Xanswer that nobody may see"
SECRETS = (PASSWORD, WRONG, FROM_LIBPQ, KEY, TOKEN)


@pytest.fixture(scope="module")
def tls(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TlsServer]:
    """A server with the schema and the roles, and a login for workers that must give its password over TLS."""
    folder = tmp_path_factory.mktemp("tls")
    version = 15 if (bin_path_of_15() / "initdb").exists() else int(request.config.getoption("--pg"))
    with start_tls_server(version, folder) as started:
        adopt(started.admin(), with_roles=True)
        run(
            started.admin(),
            f"create role robot login password '{PASSWORD}' in role {WORKER}",
            f"create role boss superuser login password '{PASSWORD}'",
        )
        yield started


def seen(text: str) -> list[str]:
    """The secrets that are in a text, or a good part of one."""
    return [secret for secret in (*SECRETS, PROMPT, ANSWER) if secret in text or secret[1:12] in text]


# --- TLS ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def _has_tls(tls: TlsServer) -> None:
    if not tls.has_tls:
        pytest.skip("this PostgreSQL is built without TLS; Debian's 15 has it")


@pytest.mark.usefixtures("_has_tls")
def test_the_right_authority_is_believed(tls: TlsServer) -> None:
    with psycopg.connect(tls.dsn("robot", PASSWORD)) as conn:
        assert conn.execute("select ssl from pg_stat_ssl where pid = pg_backend_pid()").fetchone() == (True,)

    assert run_cli(tls.dsn("boss", PASSWORD), "status", "--json").code == 0


@pytest.mark.usefixtures("_has_tls")
@pytest.mark.parametrize("verb", ["status", "init", "worker"])
def test_the_wrong_authority_is_refused_in_a_line_that_shows_no_secret(tls: TlsServer, verb: str) -> None:
    """Also by a worker: it does not wait for a certificate to become right."""
    dsn = tls.dsn("boss", PASSWORD, sslrootcert=str(tls.other_ca))

    done = run_cli(dsn, verb, backend_token=TOKEN)

    assert done.code == 1
    assert done.err.startswith(f"llmqueue: cannot connect to the database at host localhost port {tls.port}: ")
    assert "certificate verify failed" in done.err
    assert done.err.endswith("Check LLMQUEUE_DATABASE_URL.\n")
    assert seen(done.out + done.err) == []


@pytest.mark.usefixtures("_has_tls")
def test_another_hosts_certificate_is_refused(tls: TlsServer) -> None:
    done = run_cli(tls.dsn("boss", PASSWORD, host="127.0.0.1"), "status")

    assert done.code == 1
    assert 'server certificate for "localhost" does not match host name "127.0.0.1"' in done.err
    assert seen(done.err) == []


@pytest.mark.usefixtures("_has_tls")
def test_a_server_that_wants_tls_refuses_without(tls: TlsServer) -> None:
    done = run_cli(tls.dsn("boss", PASSWORD, sslmode="disable", sslrootcert=""), "status")

    assert done.code == 1
    assert "refused user" in done.err
    assert seen(done.err) == []


# --- secrets ----------------------------------------------------------------------------------------------------------

VERBS = (
    ("status",), ("status", "--json"), ("models", "list", "--json"), ("models", "set", "m", "--rpm", "1"), ("add", "-"),
    ("why", "1", "--json"), ("tasks", "show", "1", "--json"), ("tasks", "retry", "1"), ("dead", "list", "--json"),
    ("audit", "--json"), ("init", "--dry-run"), ("init", "--roles"), ("simulate", "--from-database"),
)  # fmt: skip


def _wrong_urls(tls: TlsServer) -> dict[str, str]:
    host = f"localhost:{tls.port}"
    return {
        "wrong password": f"postgresql://boss:{WRONG}@{host}/postgres",
        "no such database": f"postgresql://boss:{PASSWORD}@{host}/nowhere",
        "no such role": f"postgresql://nobody:{PASSWORD}@{host}/postgres",
        "unreachable": f"postgresql://boss:{PASSWORD}@localhost:1/postgres",
        "unknown host": f"postgresql://boss:{PASSWORD}@nowhere.invalid/postgres",
        "no port": f"postgresql://boss:{PASSWORD}@localhost:port/postgres",
        "no option": f"postgresql://boss:{PASSWORD}@{host}/postgres?nonsense={KEY}",
        "no pair": f"host=localhost password={PASSWORD} {WRONG}",
        "no scheme": f"postgre://boss:{PASSWORD}@{host}/postgres",
        "open quote": f"host=localhost password='{PASSWORD}",
        "unescaped": f"postgresql://boss:{PASSWORD}%zz@{host}/postgres",
        "key file": f"host=localhost port={tls.port} user=boss password={PASSWORD} sslpassword={KEY} sslcert=/nowhere",
        "no such file": f"postgresql://boss:{PASSWORD}@{host}/postgres?sslrootcert=/nowhere&sslmode=verify-full",
    }


def test_no_command_shows_a_secret_when_the_database_cannot_be_had(
    tls: TlsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PGPASSWORD", FROM_LIBPQ)
    shown: dict[str, list[str]] = {}
    for name, url in _wrong_urls(tls).items():
        for verb in VERBS if name in {"wrong password", "no port"} else (("status", "--json"), ("init",)):
            done = run_cli(url, *verb, stdin=f'{{"prompt": "{PROMPT}"}}'.encode(), backend_token=TOKEN)
            assert done.code in {1, 2}, (name, verb, done.out, done.err)
            assert "Traceback" not in done.err
            if found := seen(done.out + done.err):
                shown[f"{name}: {verb}"] = found

    assert shown == {}


def test_no_setting_that_is_wrong_is_shown(tls: TlsServer) -> None:
    def status(**settings: Any) -> Result:
        return run_cli(tls.admin(), "status", **settings)

    done = [
        status(backend_url=f"http://user:{KEY}@localhost:1"),
        status(backend_url=f"ftp://user:{KEY}@localhost:1"),
        status(backend_token=f"{TOKEN}\nInjected: header"),
        status(listen_url=f"postgre://boss:{PASSWORD}@localhost"),
        status(backend_tokn=TOKEN),
    ]

    assert [result.code for result in done] == [2] * len(done)
    assert seen("".join(result.out + result.err for result in done)) == []


@pytest.mark.parametrize("where", ["llmqueue.db.connect.require_schema", "llmqueue.worker.daemon.serve"])
def test_a_crash_shows_no_value_of_a_variable(tls: TlsServer, tmp_path: Path, where: str) -> None:
    """An error of our own ends with Python's plain traceback: lines of the source, no locals."""
    module = where.rsplit(".", 1)[0]
    script = f"""
import {module}
def crash(*args, **more):
    local = (args, more, {PROMPT!r}, {TOKEN!r})
    raise RuntimeError("an internal error")
{where} = crash
import llmqueue.cli.worker
llmqueue.cli.worker.serve = crash
llmqueue.cli.main()
"""
    (tmp_path / "crash.py").write_text(script)
    env = processes.environment(DATABASE_URL=tls.dsn("robot", PASSWORD), BACKEND_TOKEN=TOKEN, LOG_LEVEL="debug")

    done = subprocess.run(
        [sys.executable, str(tmp_path / "crash.py"), "worker"],
        env=env,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )

    assert done.returncode == 1
    assert "RuntimeError: an internal error" in done.stderr
    told = [line for line in done.stderr.splitlines() if "local = (args" not in line]
    assert seen(done.stdout + "\n".join(told)) == []


@asynccontextmanager
async def _quoting_backend(headers: list[str]) -> AsyncIterator[str]:
    """Answers every third prompt; the others get an error that quotes the prompt and the key."""
    calls = 0

    async def single(request: web.Request) -> web.Response:
        nonlocal calls
        calls += 1
        headers.append(request.headers.get("Authorization", ""))
        said = f"{(await request.json())['prompt']} {request.headers.get('Authorization')}"
        match calls % 4:
            case 0:
                return web.json_response({"error": said}, status=500, reason="Broken")
            case 1:
                return web.json_response({"error": said}, status=400)
            case 2:
                return web.Response(text=said)  # 200, and no answer in it
            case _:
                return web.json_response({"answer": ANSWER})

    async with serving({"/single": single}) as port:
        yield f"http://127.0.0.1:{port}"


@pytest.mark.anyio
@pytest.mark.parametrize("log_format", ["json", "console"])
async def test_a_worker_in_trouble_logs_no_prompt_no_answer_and_no_secret(
    tls: TlsServer, tmp_path: Path, log_format: str
) -> None:
    """At debug level: errors that quote, a trigger that quotes, a lost database, and the list of processes."""
    run(
        tls.admin(),
        "truncate tasks, llmqueue.quarantine, llmqueue.attempt",
        "insert into llmqueue.model_config (model, rpm) values ('a', 60000) on conflict do nothing",
        f"insert into tasks (prompt, max_attempts) select '{PROMPT} ' || n, 1 from generate_series(1, 40) n",
        "create or replace function quote() returns trigger language plpgsql as $$ begin if new.id % 5 = 0 then"
        " raise exception '% %', new.prompt, new.answer; end if; return new; end $$",
        "create or replace trigger quote before update on tasks for each row execute function quote()",
    )
    headers: list[str] = []
    async with _quoting_backend(headers) as url:
        env = processes.environment(
            DATABASE_URL=tls.dsn("robot", PASSWORD), BACKEND_URL=url, BACKEND_TOKEN=TOKEN, LOG_LEVEL="debug",
            LOG_FORMAT=log_format,
        )  # fmt: skip
        worker = processes.start(tmp_path / "worker.out", "worker", env={**env, "PGPASSWORD": FROM_LIBPQ})
        try:
            left = "select count(*) from tasks where status in ('unsolved', 'running', 'delayed') and id % 5 <> 0"
            await anyio.to_thread.run_sync(lambda: eventually(lambda: value(tls.admin(), left) == 0, timeout_s=120))
            listed = Path(f"/proc/{worker.popen.pid}/cmdline").read_bytes().decode()
            kill = "select count(pg_terminate_backend(pid)) from pg_stat_activity where usename = 'robot'"
            assert value(tls.admin(), kill) > 0
            run(tls.admin(), f"insert into tasks (prompt) values ('{PROMPT}')")
            await anyio.to_thread.run_sync(lambda: eventually(lambda: value(tls.admin(), left) == 0, timeout_s=120))
        finally:
            await anyio.to_thread.run_sync(worker.stop)

    assert value(tls.admin(), "select count(*) from tasks where answer like 'Xanswer%%'".replace("%%", "%")) > 0
    assert value(tls.admin(), "select count(*) from llmqueue.quarantine") > 0
    assert set(headers) == {f"Bearer {TOKEN}"}
    assert "attempt_ended" in worker.output
    assert seen(worker.output + listed) == []
