"""How the SQL is laid out: line width, tabs, blanks at line ends, one newline at a file's end.

`python -m tools.sql_style [FILE...]` prints what is not so and exits 1; without a file it reads all of sql/. Keywords
in lower case are held by tests/guards/test_functions.py, which knows texts from code.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).resolve().parents[1]
WIDTH: Final = 120


def violations(path: Path) -> Iterator[str]:
    """Yields `file:line: what is wrong` for each line that is not as it should be."""
    text = path.read_bytes().decode("utf-8")
    lines = text.split("\n")
    for number, line in enumerate(lines, 1):
        for wrong in _of_line(line):
            yield f"{_name(path)}:{number}: {wrong}"
    if not text.endswith("\n") or text.endswith("\n\n"):
        yield f"{_name(path)}:{len(lines)}: does not end with exactly one newline"


def sql_files() -> list[Path]:
    """Returns every SQL file of the checkout."""
    return sorted((ROOT / "sql").rglob("*.sql"))


def _of_line(line: str) -> Iterator[str]:
    if len(line) > WIDTH:
        yield f"{len(line)} characters, more than {WIDTH}"
    if "\t" in line:
        yield "a tab"
    if line != line.rstrip():
        yield "blanks at the end"


def _name(path: Path) -> str:
    whole = path.resolve()
    return str(whole.relative_to(ROOT) if whole.is_relative_to(ROOT) else path)


def main(names: Iterable[str]) -> int:
    """Reads the named files, or all; returns the exit code."""
    found = [line for path in [Path(name) for name in names] or sql_files() for line in violations(path)]
    sys.stdout.writelines(f"{line}\n" for line in found)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
