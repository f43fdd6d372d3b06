"""The database is lost in realistic ways: the worker survives, calls continue, every answer is kept."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg.conninfo import make_conninfo

from llmqueue.fake_backend import expected_answer
from llmqueue.fake_backend.call_log import read_calls
from llmqueue.install.adopt import AdoptionSpec, install
from tests.support import processes
from tests.support.eventually import eventually
from tests.support.proxy import Proxy, proxied
from tests.support.server import Server, control, start_server

pytestmark = pytest.mark.system
TASKS = 300
WORKER = "fleet"
KILL = "select pg_terminate_backend(pid) from pg_stat_activity where usename = %s"


@pytest.fixture(scope="module")
def shared_server(request: pytest.FixtureRequest) -> Iterator[Server]:
    """A server that the tests of this module break and mend one after the other."""
    with start_server(int(request.config.getoption("--pg"))) as server:
        with psycopg.connect(server.dsn(), autocommit=True) as conn:
            conn.execute(f"create role {WORKER} login")
        yield server


@pytest.fixture
def own(shared_server: Server) -> Iterator[Server]:
    """The server with a fresh database `lossy`, owned by the fleet's role, and a backlog in it."""
    with psycopg.connect(shared_server.dsn(), autocommit=True) as conn:
        conn.execute(f"create database lossy owner {WORKER}")
    try:
        prepare(shared_server)
        yield shared_server
    finally:
        with psycopg.connect(shared_server.dsn(), autocommit=True) as conn:
            conn.execute(f"alter role {WORKER} connection limit -1")
            conn.execute("drop database lossy with (force)")


def prepare(server: Server, tasks: int = TASKS) -> None:
    install(dsn_of(server), AdoptionSpec())
    with connected(server) as conn:
        conn.execute("insert into llmqueue.model_config (model, rpm) values ('a', 60000)")
        conn.execute("insert into tasks (prompt) select 'prompt ' || n from generate_series(1, %s) n", (tasks,))


def dsn_of(server: Server, **more: Any) -> str:
    return make_conninfo(server.dsn("lossy"), **{"user": WORKER, **more})


def connected(server: Server) -> psycopg.Connection[tuple[object, ...]]:
    return psycopg.connect(server.dsn("lossy"), autocommit=True)


def solved(server: Server) -> int:
    with connected(server) as conn:
        [(count,)] = conn.execute("select count(*) from tasks where status = 'solved'").fetchall()
        return int(str(count))


@contextmanager
def fleet(
    dsn: str, folder: Path, *, workers: int = 2, speed: int = 10, **settings: str
) -> Iterator[list[processes.Process]]:
    """Workers that drain the backlog with calls of some tenths of a second; each of them ends with 0."""
    with processes.backend(folder, "--any-model", "--speed", str(speed)) as url:
        env = processes.environment(
            DATABASE_URL=dsn, BACKEND_URL=url, **{"LEASE_S": "10", "CONCURRENCY": "20", **settings}
        )
        with processes.workers(folder, workers, "--drain", env=env) as started:
            yield started
            ends = [process.wait(120) for process in started]
            assert ends == [0] * workers, "\n".join(process.output[-2000:] for process in started)


def assert_each_solved_and_paid_once(server: Server, folder: Path, tasks: int = TASKS) -> None:
    with connected(server) as conn:
        rows = conn.execute("select prompt, answer, status from tasks").fetchall()
        again = conn.execute("select count(*) from llmqueue.attempt where outcome in ('lost', 'late')").fetchone()
        epochs = conn.execute("select count(*) from llmqueue.epoch").fetchone()
    assert Counter(status for _, _, status in rows) == {"solved": tasks}
    assert [prompt for prompt, answer, _ in rows if answer != expected_answer(str(prompt))] == []
    assert again == (0,)
    assert epochs == (1,), "the same server: no quiet minute"
    paid = Counter(call.key for call in read_calls(folder / "calls.jsonl"))
    assert (len(paid), max(paid.values())) == (tasks, 1)


def under_way(server: Server, started: list[processes.Process]) -> None:
    """Returns once every worker has answers and calls in flight."""
    eventually(lambda: all('"completed"' in process.output for process in started))
    assert solved(server) < TASKS


# --- killed backends, no connection left, read-only, starting up ------------------------------------------------


def test_killed_sessions_cost_no_answer(own: Server, tmp_path: Path) -> None:
    with fleet(dsn_of(own), tmp_path, speed=40) as started, connected(own) as conn:
        under_way(own, started)
        for _ in range(5):
            conn.execute(KILL, (WORKER,))
            before = solved(own)
            eventually(lambda before=before: solved(own) > before or solved(own) == TASKS)  # type: ignore[misc]

    assert_each_solved_and_paid_once(own, tmp_path)


@pytest.mark.slow
def test_a_server_without_a_free_connection_is_waited_for(own: Server, tmp_path: Path) -> None:
    with fleet(dsn_of(own), tmp_path) as started, connected(own) as conn:
        under_way(own, started)
        conn.execute(f"alter role {WORKER} connection limit 0")
        conn.execute(KILL, (WORKER,))
        eventually(lambda: all('"database_unreachable"' in process.output for process in started))
        status = processes.run("status", env=processes.environment(DATABASE_URL=dsn_of(own)))
        assert (status.returncode, "it has no free connection" in status.stderr) == (1, True), status.stderr
        assert all(process.popen.poll() is None for process in started)
        conn.execute(f"alter role {WORKER} connection limit -1")

    assert_each_solved_and_paid_once(own, tmp_path)


@pytest.mark.slow
def test_a_read_only_server_is_waited_for_and_named(own: Server, tmp_path: Path) -> None:
    with fleet(dsn_of(own), tmp_path) as started, connected(own) as conn:
        under_way(own, started)
        set_read_only(conn, "on")
        eventually(lambda: all('"database_failed"' in process.output for process in started))
        before = solved(own)
        assert all("standby or set read-only" in process.output for process in started)
        assert all(process.popen.poll() is None for process in started)
        set_read_only(conn, "off")
        eventually(lambda: solved(own) > before)

    assert_each_solved_and_paid_once(own, tmp_path)
    for process in started:
        assert process.output.count('"database_failed"') == process.output.count('"database_back"') == 1
        assert "settle_failed" not in process.output


def set_read_only(conn: psycopg.Connection[tuple[object, ...]], value: str) -> None:
    conn.execute("set default_transaction_read_only = off")  # ours stays able to undo it
    conn.execute(f"alter system set default_transaction_read_only = {value}")
    conn.execute("select pg_reload_conf()")


@pytest.mark.slow
def test_a_server_that_is_still_starting_up_is_waited_for(own: Server, tmp_path: Path) -> None:
    """A restored server refuses everybody until it has reached a consistent state; a file holds it there."""
    with fleet(dsn_of(own), tmp_path) as started:
        under_way(own, started)
        control(own, "stop", "-m", "immediate")
        eventually(lambda: all('"database_unreachable"' in process.output for process in started))
        with starting_up(own):
            assert all(process.popen.poll() is None for process in started)

    assert_each_solved_and_paid_once(own, tmp_path)
    for process in started:
        assert process.output.count('"database_unreachable"') <= 2


@contextmanager
def starting_up(server: Server) -> Iterator[None]:
    """The server runs and answers 57P03 inside; outside it is started as it should be."""
    owner = server.data_path.owner()
    user = owner if os.geteuid() == 0 else None
    signal_file = server.data_path / "standby.signal"
    signal_file.touch()
    if user:
        shutil.chown(signal_file, user)
    log = (server.data_path.parent / "starting.log").open("wb")
    options = [
        "-D",
        str(server.data_path),
        "-k",
        server.host,
        "-h",
        "",
        "-p",
        str(server.port),
        "-c",
        "hot_standby=off",
    ]
    postmaster = subprocess.Popen([str(server.bin_path / "postgres"), *options], user=user, stdout=log, stderr=log)
    try:
        eventually(lambda: _is_refusing(server))
        yield
    finally:
        postmaster.terminate()
        postmaster.wait(30)
        log.close()
        signal_file.unlink()
        control(server, "start")


def _is_refusing(server: Server) -> bool:
    """Whether it answers that it is not there yet."""
    try:
        connected(server).close()
    except psycopg.OperationalError as error:
        return "starting up" in str(error) or "accepting connections" in str(error)
    return False


# --- connections that go silent ---------------------------------------------------------------------------------


@pytest.mark.slow
def test_half_open_connections_are_replaced_before_the_lease_is_over(own: Server, tmp_path: Path) -> None:
    """A firewall forgets the connections of one worker: no error is raised, and new connections work."""
    with proxied(socket_of(own)) as proxy, fleet(through(proxy), tmp_path, workers=1) as [worker]:
        eventually(lambda: '"completed"' in worker.output)
        environment = processes.environment(DATABASE_URL=dsn_of(own), BACKEND_URL="http://127.0.0.1:1", LEASE_S="10")
        (tmp_path / "other").mkdir()
        with processes.workers(tmp_path / "other", 1, env=environment):  # it would sweep the other's tasks
            proxy.strand()
            said = worker.output.count('"completed"')
            eventually(lambda: worker.output.count('"completed"') > said + 20 or solved(own) == TASKS, timeout_s=90)
            eventually(lambda: solved(own) == TASKS, timeout_s=90)

    assert_each_solved_and_paid_once(own, tmp_path)
    assert "worker_swept" not in worker.output
    assert worker.output.count('"database_unreachable"') <= 2


@pytest.mark.slow
def test_a_network_that_is_silent_for_longer_than_every_deadline_costs_no_answer(own: Server, tmp_path: Path) -> None:
    with proxied(socket_of(own)) as proxy, fleet(through(proxy), tmp_path, workers=1) as [worker]:
        eventually(lambda: '"completed"' in worker.output)
        proxy.silence()
        eventually(lambda: '"database_unreachable"' in worker.output, timeout_s=90)
        assert worker.popen.poll() is None
        proxy.restore()

    assert_each_solved_and_paid_once(own, tmp_path)


@pytest.mark.slow
def test_connections_that_are_reset_again_and_again_cost_no_answer(own: Server, tmp_path: Path) -> None:
    with proxied(socket_of(own)) as proxy, fleet(through(proxy), tmp_path, workers=1) as [worker]:
        eventually(lambda: '"completed"' in worker.output)
        for _ in range(5):
            before = solved(own)
            proxy.reset()
            eventually(lambda before=before: solved(own) > before or solved(own) == TASKS)  # type: ignore[misc]
        proxy.cut()
        eventually(lambda: '"database_unreachable"' in worker.output)
        proxy.restore()

    assert_each_solved_and_paid_once(own, tmp_path)


def socket_of(server: Server) -> str:
    return f"{server.host}/.s.PGSQL.{server.port}"


def through(proxy: Proxy) -> str:
    return make_conninfo(host="127.0.0.1", port=proxy.port, user=WORKER, dbname="lossy", sslmode="disable")


# --- how long it takes ------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_restarted_database_is_claimed_from_at_once(own: Server, tmp_path: Path) -> None:
    """Printed; a machine may be busy, so it is not judged here."""
    with fleet(dsn_of(own), tmp_path) as started:
        under_way(own, started)
        for how in ("fast", "immediate"):
            control(own, "stop", "-m", how)
            eventually(lambda: all('"database_unreachable"' in process.output for process in started))
            control(own, "start")
            [(ready_at,)] = rows(own, "select clock_timestamp()")
            query = "select extract(epoch from min(granted_at) - %s) from llmqueue.attempt where granted_at > %s"
            eventually(
                lambda query=query, at=ready_at: rows(own, query, at, at)[0][0] is not None or solved(own) == TASKS  # type: ignore[misc]
            )
            print(f"\n{how}: first claim {rows(own, query, ready_at, ready_at)[0][0]} s after the server was up")


def rows(server: Server, query: str, *args: object) -> list[tuple[object, ...]]:
    with connected(server) as conn:
        return conn.execute(query.encode(), args or None).fetchall()


@pytest.mark.slow
@pytest.mark.parametrize("lease_s", ["20", "5"])
def test_a_killed_workers_tasks_run_again_soon_after_its_lease(own: Server, tmp_path: Path, lease_s: str) -> None:
    """Printed, with a bound that only a broken sweep could miss."""
    with processes.backend(tmp_path, "--any-model") as url:
        env = processes.environment(DATABASE_URL=dsn_of(own), BACKEND_URL=url, LEASE_S=lease_s, CONCURRENCY="5")
        with processes.workers(tmp_path, 2, env=env) as [victim, _]:
            query = "select count(*) from llmqueue.worker where beating_since < clock_timestamp() - %s::interval"
            eventually(lambda: rows(own, query, f"{lease_s} s") == [(2,)])
            victim.popen.kill()
            victim.popen.wait(10)
            [(killed_at,)] = rows(own, "select clock_timestamp()")
            query = "select extract(epoch from max(ended_at) - %s) from llmqueue.attempt where outcome = 'lost'"
            eventually(lambda: rows(own, query, killed_at)[0][0] is not None, timeout_s=10 * float(lease_s))
            print(f"\nlease of {lease_s} s: swept {rows(own, query, killed_at)[0][0]} s after the kill")


# --- no space left ----------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_full_disk_is_waited_for_and_nothing_is_lost(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with small_disk("400m") as disk, monkeypatch.context() as patch:
        patch.setattr("tempfile.tempdir", str(disk))
        with start_server(int(request.config.getoption("--pg"))) as server:
            patch.undo()
            with psycopg.connect(server.dsn(), autocommit=True) as conn:
                conn.execute(f"create role {WORKER} login")
                conn.execute(f"create database lossy owner {WORKER}")
            prepare(server)
            with fleet(dsn_of(server), tmp_path) as started:
                under_way(server, started)
                ballast = disk / "ballast"
                fill(ballast)
                eventually(lambda: all(said_trouble(process) for process in started))
                assert all(process.popen.poll() is None for process in started)
                ballast.unlink()
                eventually(lambda: can_write(server), every_s=1)
            assert_each_solved_and_paid_once(server, tmp_path)


@contextmanager
def small_disk(size: str) -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix="llmqueue-disk-"))
    folder.chmod(0o755)
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size},mode=1777", "tmpfs", str(folder)], capture_output=True, check=False
    )
    if mounted.returncode != 0:
        pytest.skip(f"no small disk can be mounted here: {mounted.stderr.decode().strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)
        folder.rmdir()


def fill(ballast: Path) -> None:
    with ballast.open("wb", buffering=0) as file, suppress(OSError):
        while True:
            file.write(bytes(65_536))


def said_trouble(process: processes.Process) -> bool:
    return '"database_failed"' in process.output or '"database_unreachable"' in process.output


def can_write(server: Server) -> bool:
    """Whether the server is up and writes; one that stopped of itself is started, as its operator would."""
    try:
        with connected(server) as conn:
            conn.execute("update llmqueue.limiter set window_s = window_s")
    except psycopg.OperationalError:
        with suppress(subprocess.CalledProcessError):
            control(server, "start")
        return False
    return True
