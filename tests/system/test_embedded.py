"""The embedded PostgreSQL: several users at once, its lifetime, and the faults that it survives."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from llmqueue.embedded import binaries, reaper
from llmqueue.embedded import server as embedded
from llmqueue.errors import UsageError
from tests.support.eventually import eventually

pytest.importorskip("psutil")
pytestmark = pytest.mark.system

# Says its DSN, then lives until its stdin closes; after a Ctrl-C it looks at the database once more.
USER = """
import signal, sys
from pathlib import Path
import psycopg
from llmqueue.embedded import server as embedded
# a suite that runs in the background of a shell inherits an ignored SIGINT, and then there is no Ctrl-C
signal.signal(signal.SIGINT, signal.default_int_handler)
dsn = embedded.start(Path(sys.argv[1]))
try:
    print(dsn, flush=True)
    sys.stdin.read()
except KeyboardInterrupt:
    print(psycopg.connect(dsn).execute("select 'still there'").fetchone()[0], flush=True)
"""


@pytest.fixture
def home() -> Iterator[Path]:
    # Not tmp_path: as root the server runs as another user, who may not enter pytest's folders.
    folder = Path(tempfile.mkdtemp(prefix="llmqueue-test-", dir="/tmp"))
    folder.chmod(0o755)
    yield folder
    embedded.leave(folder)
    if server := reaper.running(folder):
        reaper._stop(server[0], folder, server[1])
    shutil.rmtree(folder)


def user(home: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", USER, str(home)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def dsn_of(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    line = process.stdout.readline().strip()
    assert line, process.communicate()[1]
    return line


def answers(dsn: str) -> bool:
    try:
        with psycopg.connect(dsn) as conn:
            return conn.execute("select 1").fetchone() == (1,)
    except psycopg.OperationalError:
        return False


def test_two_that_start_at_once_meet_in_one_server_and_write_nothing_else(home: Path) -> None:
    users = [user(home) for _ in range(4)]

    dsns = {dsn_of(process) for process in users}
    said = [process.communicate()[1] for process in users]

    assert len(dsns) == 1
    assert answers(dsns.pop())
    assert said == ["", "", "", ""]


def test_ctrl_c_in_the_terminal_does_not_reach_the_server(home: Path) -> None:
    process = user(home)
    dsn_of(process)

    os.killpg(process.pid, signal.SIGINT)  # what a terminal does

    said, complaint = process.communicate(timeout=30)
    assert said == "still there\n", complaint


def test_server_outlives_a_killed_user_and_stops_after_the_last(home: Path) -> None:
    killed, last = user(home), user(home)
    dsn_of(killed)
    dsn = dsn_of(last)

    killed.kill()
    killed.communicate()
    assert answers(dsn)
    last.communicate()

    eventually(lambda: reaper.running(home) is None, timeout_s=reaper.LINGER_S + 20)


def test_killed_keeper_is_replaced(home: Path) -> None:
    first = user(home)
    dsn_of(first)
    (pid,) = keepers(home)
    os.kill(pid, signal.SIGKILL)

    second = user(home)
    dsn_of(second)

    assert len(keepers(home) - {pid}) == 1
    first.communicate()
    second.communicate()


def test_crash_and_stale_pid_file_are_healed(home: Path) -> None:
    embedded.start(home)
    server = reaper.running(home)
    assert server is not None
    os.kill(server[0], signal.SIGKILL)
    eventually(lambda: reaper.running(home) is None)
    # The number may belong to another process by now: here, to this one.
    pid_file = home / "postgres" / "postmaster.pid"
    lines = pid_file.read_text().splitlines()
    pid_file.write_text("\n".join([str(os.getpid()), *lines[1:]]) + "\n")

    assert answers(embedded.start(home))


def test_interrupted_initdb_is_made_anew(home: Path) -> None:
    (home / "postgres.new").mkdir()
    (home / "postgres.new" / "PG_VERSION").write_text("18\n")

    assert answers(embedded.start(home))


def test_folder_with_a_name_no_shell_and_no_socket_likes(home: Path) -> None:
    odd = home / ('it\'s $HOME; "quoted", ' + "long" * 30)
    try:
        assert answers(embedded.start(odd))
    finally:
        embedded.leave(odd)
        if server := reaper.running(odd):
            reaper._stop(server[0], odd, server[1])


@pytest.mark.skipif(os.geteuid() != 0, reason="only root runs the server as another user")
def test_root_is_told_when_the_home_is_closed_to_the_servers_user(home: Path) -> None:
    closed = home / "cooldown"
    closed.mkdir(mode=0o700)

    with pytest.raises(UsageError, match=r"cannot be entered by user pgserver.*such as /var/lib/llmqueue"):
        embedded.start(closed / "data")

    embedded.leave(closed / "data")
    assert closed.stat().st_mode & 0o777 == 0o700


@pytest.mark.skipif(os.geteuid() != 0, reason="only root runs the server as another user")
def test_programs_that_only_root_may_enter_are_copied(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    closed = home / "cooldown"
    closed.mkdir(mode=0o700)
    wheel = binaries.find_wheel()
    for folder in (wheel, wheel.with_name(f"{wheel.name}.libs")):
        shutil.copytree(folder, closed / folder.name, symlinks=True)
    monkeypatch.setattr(embedded, "find_wheel", lambda: closed / wheel.name)

    assert answers(embedded.start(home))


def test_without_the_extra_the_remedy_is_named(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _name: None)

    with pytest.raises(UsageError) as refused:
        embedded.start(home)

    assert str(refused.value) == (
        "no database: set LLMQUEUE_DATABASE_URL, or install the embedded PostgreSQL: pip install 'llmqueue[embedded]'"
    )


def keepers(home: Path) -> set[int]:
    import psutil

    return {
        process.pid
        for process in psutil.process_iter(["cmdline"])
        if "llmqueue.embedded.reaper" in (process.info["cmdline"] or []) and str(home) in process.info["cmdline"]
    }
