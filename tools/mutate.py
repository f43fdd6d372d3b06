"""Breaks, in a copy of the repository, a line on which a guarantee depends, and checks that a test fails.

    python -m tools.mutate [--pg 18] [part of a name ...]

Exit code 1 if a mutation survives, or if the named tests fail without it.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from tools.mutations import MUTATIONS, Edit, Mutation

ROOT: Final = Path(__file__).resolve().parents[1]
COPIED: Final = ("pyproject.toml", "sql", "src", "tests", "tools", "docs")


def check(mutation: Mutation, pg: str) -> str | None:
    """Returns the first test that failed, or None if the mutation survived."""
    with tempfile.TemporaryDirectory(prefix="llmqueue-mutate-") as folder:
        copy = Path(folder)
        for name in COPIED:
            _copy(ROOT / name, copy / name)
        for edit in mutation.edits:
            _apply(copy / edit.file, edit)
        return _first_failure(copy, mutation.tests, pg)


def _copy(source: Path, target: Path) -> None:
    if source.is_dir():
        shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
    elif source.exists():
        shutil.copy2(source, target)


def _apply(path: Path, edit: Edit) -> None:
    text = path.read_text(encoding="utf-8")
    path.write_text(text.replace(edit.old, edit.new), encoding="utf-8")


def stale(mutations: Sequence[Mutation]) -> list[str]:
    """Returns the edits whose text no longer exists, so that tools/mutations.py has to be updated."""
    edits = [(mutation.name, edit) for mutation in mutations for edit in mutation.edits]
    return [
        f"{name}: {edit.file} has no {edit.old!r}"
        for name, edit in edits
        if edit.old not in (ROOT / edit.file).read_text(encoding="utf-8")
    ]


def _first_failure(copy: Path, tests: Sequence[str], pg: str) -> str | None:
    # PYTHONPATH precedes the editable install, so the tests run on the copy's package and its sql/.
    env = {**os.environ, "PYTHONPATH": str(copy / "src"), "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, "-m", "pytest", "-x", "--tb=no", "-rfE", "-p", "no:cacheprovider", "--pg", pg, *tests]
    done = subprocess.run(command, cwd=copy, env=env, capture_output=True, text=True, check=False, timeout=900)
    if done.returncode == 0:
        return None
    red = [
        line.split(" ", 1)[1].split(" - ")[0]
        for line in done.stdout.splitlines()
        if line.startswith(("FAILED", "ERROR"))
    ]
    if not red:
        raise SystemExit(done.stdout[-3000:] + done.stderr[-3000:])
    return red[0].rsplit("/", 1)[-1]


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--pg", default="18", choices=["15", "16", "18"])
    parser.add_argument("names", nargs="*", help="parts of names; default: all")
    options = parser.parse_args()
    chosen = [m for m in MUTATIONS if not options.names or any(name in m.name for name in options.names)]
    if lost := stale(chosen):
        print("\n".join(lost))  # noqa: T201 - a tool for the terminal
        return 1
    sound = Mutation("nothing", (), tuple(sorted({test for m in chosen for test in m.tests})))
    red = check(sound, options.pg)
    if red is not None:
        print(f"fails without a mutation: {red}")  # noqa: T201
        return 1
    survived = 0
    for mutation in chosen:
        began = time.monotonic()
        red = check(mutation, options.pg)
        survived += red is None
        took_s = time.monotonic() - began
        print(f"{'killed  ' if red else 'SURVIVED'}  {mutation.name:<50} {took_s:4.0f} s  {red or ''}", flush=True)  # noqa: T201
    print(f"{len(chosen) - survived} of {len(chosen)} killed")  # noqa: T201
    return survived > 0


if __name__ == "__main__":
    sys.exit(main())
