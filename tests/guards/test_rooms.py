"""The rooms of src/llmqueue: imports go down, never up and never round, wherever in a file they stand."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path
from typing import Final

SOURCE: Final = Path(__file__).resolve().parents[2] / "src"
# Lowest first: a room may import from itself and from those before it. "" is the top level.
ROOMS: Final = (
    *("", "embedded", "db", "backend", "spill", "install", "load", "audit", "fake_backend"),
    *("worker", "forecast", "demo", "cli"),
)
# `python -m llmqueue` is the door of the house, and stands above all rooms.
DOOR: Final = "llmqueue.__main__"
MOST_AT_THE_TOP: Final = 10


@cache
def modules() -> dict[str, Path]:
    files = sorted((SOURCE / "llmqueue").rglob("*.py"))
    return {".".join(path.relative_to(SOURCE).with_suffix("").parts).removesuffix(".__init__"): path for path in files}


def room(module: str) -> str:
    name = module.split(".")[1] if "." in module else ""
    return name if (SOURCE / "llmqueue" / name).is_dir() else ""


def imports(module: str) -> Iterator[str]:
    """All of them: at the top of the file, in functions and under TYPE_CHECKING."""
    for node in ast.walk(ast.parse(modules()[module].read_text(encoding="utf-8"))):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import | ast.ImportFrom) else []
        if isinstance(node, ast.ImportFrom):
            names = [name if (name := f"{node.module}.{each}") in modules() else str(node.module) for each in names]
        yield from (name for name in names if name in modules() and name != module)


def test_no_import_goes_up() -> None:
    every = [(module, used) for module in modules() if module != DOOR for used in imports(module)]
    assert len(every) > 300, "the imports are found"
    assert [pair for pair in every if ROOMS.index(room(pair[0])) < ROOMS.index(room(pair[1]))] == []


def test_no_import_goes_round() -> None:
    TopologicalSorter({module: list(imports(module)) for module in modules()}).prepare()  # raises CycleError


def test_the_top_level_stays_small() -> None:
    assert (
        len([path for path in modules().values() if path.parent == SOURCE / "llmqueue" and path.name != "__init__.py"])
        <= MOST_AT_THE_TOP
    )
