"""Holds the subjects of commits to 72 characters: `python -m tools.commits`, a part of `make check`.

With a file it reads that message instead, as git's hook commit-msg does.
Only commits after BASE are read: those before it stay as they are. Where BASE is not an ancestor (a shallow clone, an
unpacked sdist, no git) there is nothing to compare with, and the check says so and passes.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).resolve().parents[1]
BASE: Final = "b8c6d88c2f46f7623ce4025da4894a3e1fe382e5"
LONGEST: Final = 72


def too_long(base: str = BASE, folder: Path = ROOT) -> list[str] | None:
    """Returns `hash length subject` of each commit that is too long, or None where nothing can be compared."""
    if _git(folder, "merge-base", "--is-ancestor", base, "HEAD") is None:
        return None
    # A merge's subject is made by git or by the forge.
    log = _git(folder, "log", "--no-merges", "--format=%h %s", f"{base}..HEAD")
    if log is None:
        return None
    commits = (line.split(" ", 1) for line in log.splitlines())
    return [f"{name} {len(subject)} {subject}" for name, subject in commits if len(subject) > LONGEST]


def _git(folder: Path, *arguments: str) -> str | None:
    git = shutil.which("git")
    if git is None or not folder.is_dir():
        return None
    done = subprocess.run([git, *arguments], cwd=folder, capture_output=True, check=False)
    return done.stdout.decode("utf-8", errors="replace") if done.returncode == 0 else None


def too_long_in(message: str) -> list[str]:
    """Returns the subject of a message that is about to be a commit, with its length, if it is too long."""
    written = (line.rstrip() for line in message.splitlines() if not line.startswith("#"))
    subject = next(filter(None, written), "")
    return [f"{len(subject)} {subject}"] if len(subject) > LONGEST else []


def main(names: Sequence[str]) -> int:
    """Prints what is too long; returns the exit code."""
    found = too_long_in(Path(names[0]).read_text(encoding="utf-8")) if names else too_long()
    if found is None:
        sys.stdout.write(f"subjects of commits: not checked, {BASE[:7]} is not in this history\n")
        return 0
    sys.stdout.writelines(f"subject over {LONGEST} characters: {line}\n" for line in found)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
