"""`llmqueue demo` as a user runs it: piped, interrupted, killed."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

pytestmark = [pytest.mark.system, pytest.mark.slow]

LONGEST_S = 90


@pytest.fixture
def home() -> Iterator[Path]:
    """A folder that the embedded server's own user may enter when we are root; pytest closes its own to others."""
    folder = Path(tempfile.mkdtemp(prefix="llmqueue-demo-", dir="/tmp"))
    folder.chmod(0o755)
    yield folder
    eventually(lambda: not processes_in(folder), timeout_s=60)  # the server leaves some seconds after its last user
    shutil.rmtree(folder)


def start(home: Path, **environment: str) -> subprocess.Popen[str]:
    program = "from llmqueue.cli import main; main()"
    return subprocess.Popen(
        [sys.executable, "-c", program, "demo"],
        env=os.environ | {"LLMQUEUE_HOME": str(home)} | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=home,
    )


def children_in(home: Path) -> list[psutil.Process]:
    """The demo's own processes: its backend and its workers, wherever their parent has gone."""
    return [p for p in processes_in(home) if "llmqueue.demo.child" in " ".join(p.info["cmdline"] or [])]


def processes_in(home: Path) -> list[psutil.Process]:
    found = psutil.process_iter(["cmdline", "cwd", "status"])
    return [
        p for p in found if (p.info["cwd"] or "").startswith(str(home)) and p.info["status"] != psutil.STATUS_ZOMBIE
    ]


def eventually(is_true: Callable[[], bool], timeout_s: float) -> None:
    give_up_at = time.monotonic() + timeout_s
    while not is_true():
        assert time.monotonic() < give_up_at, "it did not come true"
        time.sleep(0.05)


def until_it_works(demo: subprocess.Popen[str]) -> list[str]:
    """Reads until the first live line and returns what was said."""
    said: list[str] = []
    assert demo.stdout is not None
    for line in demo.stdout:
        said.append(line)
        if line.startswith("0:"):
            return said
    pytest.fail(f"no live line: {said} {demo.communicate()}")


def test_all_is_well_within_90_s_and_a_database_of_the_user_is_left_alone(home: Path):
    began = time.monotonic()
    demo = start(home, LLMQUEUE_DATABASE_URL="host=nowhere.invalid")

    output, errors = demo.communicate(timeout=2 * LONGEST_S)

    took_s = time.monotonic() - began
    assert demo.returncode == 0, output + errors
    assert "All is well" in output
    assert "is set, but not used" in output
    assert children_in(home) == []
    assert took_s < LONGEST_S, output


def cluster_in(home: Path) -> tuple[Path, int]:
    """Its version file and that one's inode, which another initdb would change."""
    [version] = [path for path in home.rglob("PG_VERSION") if path.with_name("pg_wal").exists()]
    return version, version.stat().st_ino


def test_ctrl_c_ends_it_with_130_and_the_next_one_makes_no_cluster_anew(home: Path):
    demo = start(home)
    until_it_works(demo)
    cluster = cluster_in(home)

    demo.send_signal(signal.SIGINT)
    _, errors = demo.communicate(timeout=10)

    assert demo.returncode == 130
    assert errors == "stopped; nothing of the demo is running any more\n"
    assert children_in(home) == []

    again = start(home)
    until_it_works(again)
    again.terminate()
    again.communicate(timeout=10)

    assert cluster_in(home) == cluster
    assert again.returncode == 143
    assert children_in(home) == []


def test_a_killed_demo_takes_its_processes_along(home: Path):
    demo = start(home)
    until_it_works(demo)
    assert len(children_in(home)) == 3

    demo.kill()
    demo.communicate()

    eventually(lambda: not children_in(home), timeout_s=5)
