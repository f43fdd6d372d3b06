"""The database is unreachable while calls end: their answers survive the outage, the worker, and a full disk."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path

import psycopg
import pytest
from psycopg.conninfo import make_conninfo

from llmqueue.install.adopt import AdoptionSpec, install
from tests.support import processes
from tests.support.eventually import eventually
from tests.support.held import HeldBackend, answer_to, held_backend
from tests.support.proxy import Proxy, proxied
from tests.support.server import Server, control, start_server

pytestmark = pytest.mark.system

NUMBER = count(1)
SETTLING = """
    select count(*) from pg_stat_activity
     where datname = current_database() and wait_event_type = 'Lock' and query like '%llmqueue.settle(%'
"""


@pytest.fixture(scope="module")
def own_server(request: pytest.FixtureRequest) -> Iterator[Server]:
    """A server that a test may stop, and starts again."""
    with start_server(int(request.config.getoption("--pg"))) as server:
        install(server.dsn("template1"), AdoptionSpec())
        yield server


@pytest.fixture
def dsn(own_server: Server) -> Iterator[str]:
    """A fresh installed database of that server."""
    name = f"spill_{next(NUMBER)}"
    with psycopg.connect(own_server.dsn(), autocommit=True) as conn:
        conn.execute(f"create database {name}")
    yield own_server.dsn(name)
    with psycopg.connect(own_server.dsn(), autocommit=True) as conn:
        conn.execute(f"drop database {name} with (force)")


@pytest.fixture
def backend() -> Iterator[HeldBackend]:
    with held_backend() as held:
        yield held


def socket_of(server: Server) -> str:
    return f"{server.host}/.s.PGSQL.{server.port}"


def through(proxy: Proxy, dsn: str) -> str:
    return make_conninfo(dsn, host="127.0.0.1", port=proxy.port, sslmode="disable", gssencmode="disable")


def insert(dsn: str, prompt: str, how_many: int) -> None:
    with psycopg.connect(dsn, autocommit=True) as conn:
        conn.execute(
            "insert into llmqueue.model_config (model, rpm) values ('a', 60000) on conflict (model) do nothing"
        )
        conn.execute("insert into tasks (prompt) select %s || n from generate_series(1, %s) n", (prompt, how_many))


def environment(dsn: str, backend: HeldBackend, home: Path, **more: str) -> dict[str, str]:
    return processes.environment(DATABASE_URL=dsn, BACKEND_URL=backend.url, HOME=str(home), **more)


def spilled(home: Path) -> int:
    """How many ends wait in the spill files of `home`."""
    files = (home / "spill").glob("*.jsonl")
    return sum(max(0, path.read_bytes().count(b"\n") - 1) for path in files)


def make(folder: Path) -> Path:
    folder.mkdir()
    return folder


def files(home: Path) -> list[str]:
    return sorted(path.name for path in (home / "spill").iterdir())


def not_solved(dsn: str) -> list[object]:
    """Tasks whose stored row is not what one attempt should have made of it."""
    with psycopg.connect(dsn, autocommit=True) as conn:
        rows = conn.execute("select id, prompt, answer, status from tasks").fetchall()
    return [row for row in rows if row[2:] != (answer_to(str(row[1])), "solved")]


def attempts(dsn: str) -> Counter[str]:
    with psycopg.connect(dsn, autocommit=True) as conn:
        return Counter(row[0] for row in conn.execute("select outcome from llmqueue.attempt").fetchall())


def test_an_outage_longer_than_the_lease_costs_no_answer_and_no_second_call(
    own_server: Server, dsn: str, backend: HeldBackend, tmp_path: Path
) -> None:
    lease_s = 3.0
    insert(dsn, "prompt ", 24)
    env = environment(dsn, backend, tmp_path / "home", LEASE_S=str(lease_s), CONCURRENCY="14")
    with processes.workers(tmp_path, 2, env=env) as started:
        eventually(lambda: len(backend.calls) == 24)
        control(own_server, "stop", "-m", "immediate")
        stopped_at = time.monotonic()
        backend.release(16)
        eventually(lambda: spilled(tmp_path / "home") == 16)
        backend.release(8)
        eventually(lambda: spilled(tmp_path / "home") == 24)
        eventually(lambda: time.monotonic() > stopped_at + 1.7 * lease_s)
        control(own_server, "start")
        eventually(lambda: not not_solved(dsn))
        eventually(lambda: files(tmp_path / "home") == [])
        backend.release(1)
        insert(dsn, "afterwards ", 1)
        eventually(lambda: not not_solved(dsn))
        assert [process.stop() for process in started] == [0, 0]

    assert (len(backend.calls), len(set(backend.calls))) == (25, 25)
    assert attempts(dsn).keys() <= {"completed", "released"}
    for process in started:
        assert process.output.count('"spill_written"') == process.output.count('"spill_settled"') == 1
        assert "secret answer" not in process.output


def test_what_two_workers_had_spilled_outlives_kill_9_of_one_and_sigterm_of_the_other(
    own_server: Server, dsn: str, backend: HeldBackend, tmp_path: Path
) -> None:
    home = tmp_path / "home"
    insert(dsn, "prompt ", 12)
    env = environment(dsn, backend, home, LEASE_S="1", DRAIN_S="0", CONCURRENCY="7")  # six each
    with processes.workers(tmp_path, 2, env=env) as [killed, stopped]:
        eventually(lambda: len(backend.calls) == 12)
        control(own_server, "stop", "-m", "immediate")
        backend.release(8)
        eventually(lambda: spilled(home) == 8)
        killed.stop(signal.SIGKILL)
        assert stopped.stop() == 1
    paths = sorted((home / "spill").iterdir())
    assert [path.stat().st_mode & 0o777 for path in paths] == [0o600] * 2
    assert (home / "spill").stat().st_mode & 0o777 == 0o700
    # Of the four calls in flight those of the stopped worker end too; the killed one's have nobody to say so.
    ended = spilled(home)
    assert 8 <= ended <= 12
    assert re.search(r"\d+ finished calls could not be written to the database and wait in ", stopped.output)
    for path in paths:
        with path.open("ab") as torn:
            torn.write(path.read_bytes().splitlines()[1][:50])  # a write that a kill cut off

    control(own_server, "start")
    backend.release(4 + 4)  # those whose callers have gone wait too
    with processes.workers(make(tmp_path / "recovery"), 1, env=env) as [recovery]:
        eventually(lambda: not not_solved(dsn))
        eventually(lambda: files(home) == [])
        assert recovery.stop() == 0

    assert sorted(Counter(backend.calls).values()) == [1] * 8 + [2] * 4
    ends = attempts(dsn)
    del ends["released"]  # a grant that a slow machine could not use in time costs nothing
    assert ends == Counter(completed=12, retried=ended - 8) + Counter(lost=12 - ended)
    assert recovery.output.count('"spill_recovered"') == recovery.output.count('"spill_damaged"') == 2
    assert "Traceback" not in recovery.output + stopped.output
    assert "secret answer" not in killed.output + stopped.output + recovery.output


@pytest.mark.slow
def test_ten_minutes_without_a_database_and_500_calls_in_flight_cost_no_answer_and_no_second_call(
    own_server: Server, dsn: str, backend: HeldBackend, tmp_path: Path
) -> None:
    home = tmp_path / "home"
    insert(dsn, "prompt ", 500)
    env = environment(dsn, backend, home, LEASE_S="20", CONCURRENCY="300")
    with processes.workers(tmp_path, 2, env=env) as started:
        eventually(lambda: len(backend.calls) == 500, timeout_s=120)
        control(own_server, "stop", "-m", "immediate")
        stopped_at = time.monotonic()
        for batch in range(1, 6):
            backend.release(100)
            eventually(lambda batch=batch: spilled(home) == 100 * batch)  # type: ignore[misc]
            eventually(lambda batch=batch: time.monotonic() > stopped_at + 120 * batch, timeout_s=240, every_s=1)  # type: ignore[misc]
        control(own_server, "start")
        back_at = time.monotonic()
        eventually(lambda: not not_solved(dsn))
        print(f"\nevery answer is in the database {time.monotonic() - back_at:.1f} s after it is back")
        eventually(lambda: files(home) == [])
        # A whole lease of beating later the sweep goes on: nothing is left for it.
        eventually(lambda: time.monotonic() > back_at + 60, timeout_s=240, every_s=1)
        assert [process.stop() for process in started] == [0, 0]

    assert (len(backend.calls), len(set(backend.calls))) == (500, 500)
    assert attempts(dsn).keys() <= {"completed", "released"}
    assert not_solved(dsn) == []
    for process in started:
        assert process.output.count('"database_unreachable"') <= 12


@pytest.mark.slow
def test_a_stop_under_a_silent_database_has_the_last_answers_on_disk_at_once_and_ends_in_time(
    own_server: Server, dsn: str, backend: HeldBackend, tmp_path: Path
) -> None:
    home, drain_s = tmp_path / "home", 60.0
    insert(dsn, "prompt ", 5)
    with proxied(socket_of(own_server)) as proxy:
        env = environment(through(proxy, dsn), backend, home, DRAIN_S=str(drain_s), LEASE_S="120")
        with (
            processes.workers(tmp_path, 1, env=env) as [worker],
            psycopg.connect(dsn) as holder,
            psycopg.connect(dsn, autocommit=True) as conn,
        ):
            eventually(lambda: len(backend.calls) == 5)
            worker.popen.terminate()
            eventually(lambda: conn.execute("select is_draining from llmqueue.worker").fetchone() == (True,))
            # a flush is under way when the last call ends, and will not come back
            holder.execute("lock table llmqueue.attempt in exclusive mode")
            backend.release(1)
            eventually(lambda: conn.execute(SETTLING).fetchone() == (1,))
            proxy.silence()
            holder.rollback()
            backend.release(4)
            answered_at = time.monotonic()
            eventually(lambda: spilled(home) == 5)
            spilled_s = time.monotonic() - answered_at
            assert worker.wait(120) == 1, worker.output[-3000:]
            ended_s = time.monotonic() - answered_at

    print(f"\nSIGTERM under a silent database: spilled after {spilled_s:.1f} s, ended after {ended_s:.1f} s")
    assert spilled_s < 8, "not only when the flush under way has run into its deadline"
    assert ended_s < 25, "as documented 10 to 15 s; the rest is for a busy machine"
    with processes.workers(make(tmp_path / "next"), 1, env=environment(dsn, backend, home)):
        eventually(lambda: not not_solved(dsn))
    assert len(backend.calls) == 5


@pytest.mark.slow
def test_a_stop_under_a_database_that_has_long_been_silent_counts_its_drain_from_the_signal(
    own_server: Server, dsn: str, backend: HeldBackend, tmp_path: Path
) -> None:
    home, drain_s = tmp_path / "home", 10.0
    insert(dsn, "prompt ", 3)
    with proxied(socket_of(own_server)) as proxy:
        env = environment(through(proxy, dsn), backend, home, DRAIN_S=str(drain_s), LEASE_S="120")
        with processes.workers(tmp_path, 1, env=env) as [worker]:
            eventually(lambda: len(backend.calls) == 3)
            proxy.silence()
            eventually(lambda: '"database_unreachable"' in worker.output)
            worker.popen.terminate()
            stopped_at = time.monotonic()
            eventually(lambda: spilled(home) == 3)
            drained_at = stopped_at + drain_s
            spilled_s = time.monotonic() - drained_at
            assert worker.wait(120) == 1, worker.output[-3000:]
            ended_s = time.monotonic() - drained_at

    print(f"\nA database long silent: spilled {spilled_s:.1f} s after the drain, ended after {ended_s:.1f} s")
    assert spilled_s < 8, "neither what it costs to say that it drains nor a claim under way is part of it"
    assert ended_s < 25


@pytest.mark.slow
def test_a_stop_that_leaves_an_answer_behind_does_not_have_its_task_swept_at_once(
    own_server: Server, dsn: str, backend: HeldBackend, tmp_path: Path
) -> None:
    home = tmp_path / "home"
    insert(dsn, "prompt ", 1)
    env = environment(dsn, backend, home, LEASE_S="60", DRAIN_S="3600")
    with (
        psycopg.connect(dsn) as somebody,
        processes.workers(tmp_path, 1, env=env) as [stopped],
        processes.workers(make(tmp_path / "other"), 1, env=env) as [other],
    ):
        eventually(lambda: len(backend.calls) == 1)
        somebody.execute("select from tasks for update")
        backend.release(1)
        eventually(lambda: spilled(home) == 1)
        [name] = files(home)
        owner = stopped if name.removesuffix(".jsonl") in stopped.output else other
        assert owner.stop() == 1
        with psycopg.connect(dsn) as conn:
            assert conn.execute("select count(*) from llmqueue.worker").fetchone() == (2,)
        somebody.rollback()
        # The other worker finds the file by itself: its lock is free.
        eventually(lambda: not not_solved(dsn))
        eventually(lambda: files(home) == [])

    assert len(backend.calls) == 1


@pytest.mark.slow
def test_a_worker_that_the_database_no_longer_wants_leaves_its_answers(
    own_server: Server, dsn: str, backend: HeldBackend, tmp_path: Path
) -> None:
    home = tmp_path / "home"
    insert(dsn, "prompt ", 3)
    env = environment(dsn, backend, home)
    hba = own_server.data_path / "pg_hba.conf"
    before = hba.read_text()
    with processes.workers(tmp_path, 1, env=env) as [refused]:
        eventually(lambda: len(backend.calls) == 3)
        control(own_server, "stop", "-m", "immediate")
        backend.release(3)
        eventually(lambda: '"database_unreachable"' in refused.output)
        hba.write_text("local all all scram-sha-256\n" + before)
        try:
            control(own_server, "start")
            assert refused.wait(60) == 1
        finally:
            hba.write_text(before)
            control(own_server, "reload")
    assert spilled(home) == 3

    with processes.workers(make(tmp_path / "recovery"), 1, env=env) as [recovery]:
        eventually(lambda: not not_solved(dsn))
        assert recovery.stop() == 0

    assert len(backend.calls) == 3
    assert "Traceback" not in refused.output


@contextmanager
def small_disk(folder: Path) -> Iterator[Path]:
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "llmqueue-test", str(folder)]
    done = subprocess.run(mount, capture_output=True, text=True, check=False) if os.geteuid() == 0 else None
    if done is None or done.returncode:
        pytest.skip("a small file system cannot be mounted: " + (done.stderr.strip() if done else "not root"))
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def test_a_full_disk_costs_no_answer_once_room_is_made(
    own_server: Server, dsn: str, backend: HeldBackend, tmp_path: Path
) -> None:
    insert(dsn, "large ", 4)
    with small_disk(tmp_path / "disk") as home:
        filler = home / "filler"
        filler.write_bytes(b"x" * 900_000)
        env = environment(dsn, backend, home)
        with processes.workers(tmp_path, 1, env=env) as [worker]:
            eventually(lambda: len(backend.calls) == 4)
            control(own_server, "stop", "-m", "immediate")
            backend.release(4)
            eventually(lambda: '"spill_failed"' in worker.output)
            assert spilled(home) == 0
            filler.unlink()
            eventually(lambda: spilled(home) == 4)
            control(own_server, "start")
            eventually(lambda: not not_solved(dsn))
            eventually(lambda: files(home) == [])
            assert worker.stop() == 0

    assert sorted(Counter(backend.calls).values()) == [1] * 4
    said = worker.output
    assert (said.count('"spill_failed"'), said.count('"spill_has_room"')) == (1, 1)
    assert "No space left on device" in said
    assert "Traceback" not in said
