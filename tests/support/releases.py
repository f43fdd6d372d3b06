"""Other releases of this program: the last one from the git history, and a next one created from this tree."""

from __future__ import annotations

import io
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support import processes

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Release:
    """A tree with `src` and `sql`; its programs start with a PYTHONPATH, which precedes the installed package."""

    folder: Path

    def environment(self, **settings: str) -> dict[str, str]:
        return processes.environment(**settings) | {"PYTHONPATH": str(self.folder / "src")}

    def run(self, *arguments: str, env: Mapping[str, str], timeout_s: float = 120) -> subprocess.CompletedProcess[str]:
        done = processes.run(*arguments, env=env, timeout_s=timeout_s)
        assert done.returncode == 0, done.stdout + done.stderr
        return done

    @property
    def sql(self) -> Path:
        return self.folder / "sql"

    @property
    def version(self) -> int:
        return max(int(path.name[:4]) for path in (self.sql / "schema").glob("*.sql"))

    def add_migration(self, name: str, text: str) -> Path:
        path = self.sql / "schema" / f"{self.version + 1:04}_{name}.sql"
        path.write_text(text)
        return path

    def edit(self, name: str, old: str, new: str) -> None:
        """Replaces the only occurrence in a file of the tree."""
        path = self.folder / name
        text = path.read_text()
        assert text.count(old) == 1, f"{old!r} in {name}: {text.count(old)} times"
        path.write_text(text.replace(old, new))


def next_release(folder: Path) -> Release:
    """Returns a copy of this tree, for changes."""
    for part in ("src", "sql"):
        shutil.copytree(ROOT / part, folder / part, ignore=shutil.ignore_patterns("__pycache__"))
    return Release(folder)


def last_release(folder: Path) -> Release:
    """Returns the tree of the newest tag; skips the test if there is none, as before the first release."""
    tags = _git("tag", "--list", "v[0-9]*", "--sort=-version:refname").decode().split()
    with tarfile.open(fileobj=io.BytesIO(_git("archive", tags[0], "src", "sql"))) as tar:
        tar.extractall(folder, filter="data")
    return Release(folder)


def _git(*arguments: str) -> bytes:
    git = shutil.which("git")
    if git is None or not (ROOT / ".git").exists():
        pytest.skip("no git history here, so there is no earlier release")
    done = subprocess.run([git, "-C", str(ROOT), *arguments], capture_output=True, check=False, timeout=60)
    if done.returncode or not done.stdout:
        pytest.skip(
            f"not in this history (a shallow clone?): git {' '.join(arguments)}: {done.stderr.decode().strip()}"
        )
    return done.stdout


def program_of(release: Release) -> str:
    """Returns the file that `import llmqueue` finds in a process of this release."""
    code = "import llmqueue; print(llmqueue.__file__)"
    done = subprocess.run(
        [sys.executable, "-c", code], env=release.environment(), capture_output=True, text=True, check=True, timeout=60
    )
    return done.stdout.strip()
