"""The demo's processes: the simulated backend and the workers, each in its own process group.

A Ctrl-C in the terminal reaches only the demo, which then stops them. If the demo is killed, they end too (child.py).
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from llmqueue.errors import Failure

_STOP_TIMEOUT_S = 2.0
_ANNOUNCED = re.compile(r"\bhttps?://\S+")


@dataclass(frozen=True, slots=True)
class Child:
    """A process of the demo and its log file."""

    name: str
    process: subprocess.Popen[str]
    log: Path

    @property
    def is_running(self) -> bool:
        return self.process.poll() is None

    def last_line(self) -> str:
        """Returns the last line of its log, for a message."""
        lines = self.log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        return lines[-1] if lines else "it wrote nothing"


class Processes:
    """Starts child processes, with logs in `folder`; all of them have ended when `running` ends."""

    def __init__(self, folder: Path, files: ExitStack) -> None:
        self.folder = folder
        self._files = files
        self._children: list[Child] = []

    def start_backend(self, options: Sequence[str]) -> Child:
        """Starts `llmqueue backend`; backend_url() waits for it."""
        return self._start("backend", ["backend", "--port", "0", *options], {}, stdout=subprocess.PIPE)

    def start_worker(self, number: int, settings: Mapping[str, str]) -> Child:
        """Starts `llmqueue worker --drain`."""
        return self._start(f"worker-{number}", ["worker", "--drain"], settings)

    def _start(
        self, name: str, arguments: Sequence[str], settings: Mapping[str, str], stdout: int | None = None
    ) -> Child:
        log = self.folder / f"{name}.log"
        output = self._files.enter_context(log.open("w", encoding="utf-8"))
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "llmqueue.demo.child", *arguments],
            cwd=self.folder,  # they must not read a .env of the current folder
            env=_environment(settings),
            stdin=subprocess.PIPE,
            stdout=output if stdout is None else stdout,
            stderr=output,
            text=True,
            process_group=0,
        )
        child = Child(name, process, log)
        self._children.append(child)
        return child

    def stop(self) -> None:
        """Tells all children to stop, and kills those that do not end within two seconds."""
        for child in self._children:
            child.process.terminate()
        give_up_at = time.monotonic() + _STOP_TIMEOUT_S
        for child in self._children:
            try:
                child.process.wait(max(0.0, give_up_at - time.monotonic()))
            except subprocess.TimeoutExpired:
                child.process.kill()
                child.process.wait()
            for pipe in (child.process.stdin, child.process.stdout):
                _close(pipe)


@contextmanager
def running(folder: Path) -> Iterator[Processes]:
    """Stops all started processes when the context ends, in any way."""
    with ExitStack() as files:
        processes = Processes(folder, files)
        try:
            yield processes
        finally:
            processes.stop()


def backend_url(backend: Child) -> str:
    """Waits for the first line of `llmqueue backend` and returns its URL.

    Raises:
        Failure: it ended before it had printed its URL.
    """
    first = backend.process.stdout.readline() if backend.process.stdout else ""
    match = _ANNOUNCED.search(first)
    if match is None:
        backend.process.wait(_STOP_TIMEOUT_S)
        raise Failure(f"the simulated backend did not start: {backend.last_line()}")
    return match[0]


def _environment(settings: Mapping[str, str]) -> dict[str, str]:
    """Returns the caller's environment, with only the given settings of llmqueue."""
    ours = {name: value for name, value in os.environ.items() if not name.upper().startswith("LLMQUEUE_")}
    return ours | {f"LLMQUEUE_{name}": value for name, value in settings.items()} | {"PYTHONUNBUFFERED": "1"}


def _close(pipe: IO[str] | None) -> None:
    if pipe is not None:
        pipe.close()
