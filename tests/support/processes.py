"""Real processes of the command line, started as a user would start them."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

LLMQUEUE = [sys.executable, "-m", "llmqueue"]


def free_port() -> int:
    """Returns a free port of the loopback."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@dataclass(frozen=True)
class Process:
    popen: subprocess.Popen[bytes]
    out_path: Path

    @property
    def output(self) -> str:
        return self.out_path.read_text()

    def stop(self, how: signal.Signals = signal.SIGTERM, timeout_s: float = 60) -> int:
        if self.popen.poll() is None:
            self.popen.send_signal(how)
        return self.popen.wait(timeout_s)

    def wait(self, timeout_s: float) -> int:
        return self.popen.wait(timeout_s)


def environment(**settings: str) -> dict[str, str]:
    """Returns this process's environment with only these LLMQUEUE_ settings."""
    rest = {name: value for name, value in os.environ.items() if not name.startswith("LLMQUEUE_")}
    return rest | {f"LLMQUEUE_{name}": value for name, value in settings.items()}


def start(out_path: Path, *arguments: str, env: Mapping[str, str]) -> Process:
    """Starts a process. Its LLMQUEUE_HOME is the folder `home` beside its output, unless `env` names another."""
    env = {"LLMQUEUE_HOME": str(out_path.parent / "home")} | dict(env)
    with out_path.open("wb") as out:
        popen = subprocess.Popen(
            [*LLMQUEUE, *arguments], stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.STDOUT, env=dict(env)
        )
    return Process(popen, out_path)


def run(*arguments: str, env: Mapping[str, str], timeout_s: float = 120) -> subprocess.CompletedProcess[str]:
    env = {"LLMQUEUE_HOME": str(Path(tempfile.gettempdir()) / "llmqueue-test-home")} | dict(env)
    return subprocess.run(
        [*LLMQUEUE, *arguments],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        env=dict(env),
        timeout=timeout_s,
        check=False,
    )


@contextmanager
def backend(folder: Path, *options: str, port: int = 0) -> Iterator[str]:
    """Runs the simulated Models Backend, with the call log folder/calls.jsonl. Yields its URL."""
    out_path = folder / "backend.out"
    with out_path.open("wb") as out:
        command = [*LLMQUEUE, "backend", "--port", str(port), "--log", str(folder / "calls.jsonl"), *options]
        popen = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=out, env=environment())
    assert popen.stdout is not None
    try:
        line = popen.stdout.readline().decode()
        found = re.search(r"http://\S+", line)
        assert found, f"the backend did not start: {line} {out_path.read_text()}"
        yield found[0]
    finally:
        popen.terminate()
        popen.wait(20)
        popen.stdout.close()


@contextmanager
def workers(folder: Path, how_many: int, *options: str, env: Mapping[str, str]) -> Iterator[list[Process]]:
    started = [start(folder / f"worker{n}.out", "worker", *options, env=env) for n in range(how_many)]
    try:
        yield started
    finally:
        for process in started:
            if process.popen.poll() is None:
                process.popen.kill()
            process.popen.wait(10)
