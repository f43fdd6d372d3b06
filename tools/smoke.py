"""Installs built distributions, each into an environment of its own, and has one task answered: `make release`.

`python tools/smoke.py dist/llmqueue-0.1.0.tar.gz dist/llmqueue-0.1.0-py3-none-any.whl`. Needs the standard library
alone, and nothing of the checkout but what it is given: everything happens in a temporary folder.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

CONSTRAINTS: Final = Path(__file__).resolve().parents[1] / "constraints.txt"
VERSION: Final = re.compile(r"^llmqueue-([^-]+?)(?:-py3-none-any\.whl|\.tar\.gz)$")
STEP_TIMEOUT_S: Final = 300  # a step that hangs; the longest, an installation, takes a tenth of it


class Installed:
    """A distribution in a virtual environment outside the checkout, with a home of its own."""

    def __init__(self, distribution: Path, folder: Path) -> None:
        self.folder = folder
        self.programs = folder / "venv" / "bin"
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("LLMQUEUE_", "PYTHON"))}
        self.env = {**kept, "LLMQUEUE_HOME": str(folder / "home"), "LLMQUEUE_LOG_LEVEL": "warning"}
        self._run(sys.executable, "-m", "venv", str(folder / "venv"))
        wanted = f"{distribution}[embedded]"
        self._run(str(self.programs / "pip"), "install", "-qq", "--constraint", str(CONSTRAINTS), wanted)

    def llmqueue(self, *arguments: str, stdin: str = "") -> str:
        """Runs a command of the installed program; returns what it wrote."""
        return self._run(str(self.programs / "llmqueue"), *arguments, stdin=stdin)

    @contextmanager
    def backend(self) -> Iterator[str]:
        """The simulated backend on a free port; yields its address."""
        command = [str(self.programs / "llmqueue"), "backend", "--port", "0", "--instant", "--model", "a"]
        with subprocess.Popen(command, cwd=self.folder, env=self.env, stdout=subprocess.PIPE, text=True) as process:
            try:
                line = process.stdout.readline() if process.stdout else ""
                found = re.search(r"http://\S+", line)
                if not found:
                    raise SystemExit(f"the simulated backend did not start: {line!r}")
                yield found[0]
            finally:
                process.terminate()

    def _run(self, *command: str, stdin: str = "") -> str:
        done = subprocess.run(
            command,
            cwd=self.folder,
            env=self.env,
            input=stdin,
            stdout=subprocess.PIPE,
            text=True,
            check=False,
            timeout=STEP_TIMEOUT_S,
        )
        if done.returncode != 0:
            raise SystemExit(f"{' '.join(command)}: exit {done.returncode}\n{done.stdout}")
        return done.stdout


def smoke(distribution: Path) -> None:
    """Raises SystemExit where the distribution does not do what a first user does."""
    version = VERSION.match(distribution.name)
    if not version:
        raise SystemExit(f"neither a wheel nor an sdist of llmqueue: {distribution}")
    with tempfile.TemporaryDirectory(prefix="llmqueue-smoke-", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        folder.chmod(0o755)  # as root the embedded server runs as another user
        installed = Installed(distribution.resolve(), folder)
        _expect("the version", installed.llmqueue("--version").strip(), f"llmqueue {version[1]}")
        installed.llmqueue("doctor", "--help")
        _expect("the answer", answer_of_one_task(installed) is not None, True)
    sys.stdout.write(f"{distribution.name}: installed, and one task answered\n")


def answer_of_one_task(installed: Installed) -> object:
    """The way of a first user: a table, a model, a backend, a task, a worker; returns the task's answer."""
    installed.llmqueue("init")
    installed.llmqueue("models", "set", "a", "--rpm", "600")
    with installed.backend() as url:
        installed.env["LLMQUEUE_BACKEND_URL"] = url
        installed.llmqueue("add", "-", stdin='{"prompt": "why?"}\n')
        installed.llmqueue("worker", "--drain")
    task = json.loads(installed.llmqueue("tasks", "show", "1", "--json"))["task"]
    _expect("the task's status", task["status"], "solved")
    return task["answer"]


def _expect(what: str, found: object, wanted: object) -> None:
    if found != wanted:
        raise SystemExit(f"{what} is {found!r}, and not {wanted!r}")


if __name__ == "__main__":
    if not sys.argv[1:]:
        raise SystemExit("usage: python tools/smoke.py DISTRIBUTION...")
    for argument in sys.argv[1:]:
        smoke(Path(argument))
