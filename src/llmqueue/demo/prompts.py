"""Real prompts that every machine has: questions about the docstrings of Python's standard library.

The sources are parsed and never imported: importing them all would, for example, open a browser (antigravity).
"""

from __future__ import annotations

import ast
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

SHORTEST = 30  # characters; a shorter docstring has nothing to summarise
_LEFT_OUT = {"__pycache__", "dist-packages", "idlelib", "lib2to3", "site-packages", "test", "tests", "turtledemo"}
_Documented = (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
# If the library has too few docstrings, the next question is asked about the same ones.
_QUESTIONS = (
    "Summarise in one sentence what `{name}` does",
    "Explain `{name}` to a newcomer in three sentences",
    "Write three test cases for `{name}`",
    "Name the most likely mistake in using `{name}`",
)


@dataclass(frozen=True, slots=True)
class Prompt:
    """A question about one name of the standard library."""

    name: str
    text: str


def make_prompts(count: int, folder: Path | None = None) -> list[Prompt]:
    """Returns up to `count` different prompts, the same in each call; `folder` None: the standard library."""
    folder = folder or Path(sysconfig.get_path("stdlib"))
    found = list(islice(_docstrings(folder), count))
    prompts = (
        Prompt(name, f"{question.format(name=name)}:\n\n{docstring}")
        for question in _QUESTIONS
        for name, docstring in found
    )
    return list(islice(prompts, count))


def _docstrings(folder: Path) -> Iterator[tuple[str, str]]:
    """Yields public names and their docstrings, each docstring once."""
    seen: set[str] = set()
    for path in _sources(folder):
        try:
            tree = ast.parse(path.read_bytes())
        except (OSError, SyntaxError, ValueError):
            continue  # a file for another Python version, or one that no longer exists
        module = ".".join(path.relative_to(folder).with_suffix("").parts).removesuffix(".__init__")
        for name, docstring in _documented(tree, module):
            if len(docstring) >= SHORTEST and docstring not in seen:
                seen.add(docstring)
                yield name, docstring


def _sources(folder: Path) -> Iterator[Path]:
    """Yields the public modules, those at the top first."""
    yield from sorted(path for path in folder.glob("*.py") if _is_public(path.stem))
    for package in sorted(path for path in folder.iterdir() if path.is_dir() and path.name not in _LEFT_OUT):
        if _is_public(package.name):
            inside = (path for path in package.rglob("*.py") if not _LEFT_OUT & set(path.relative_to(folder).parts))
            yield from sorted(inside)


def _documented(node: ast.Module | ast.ClassDef, name: str) -> Iterator[tuple[str, str]]:
    if docstring := ast.get_docstring(node):
        yield name, docstring
    for child in node.body:
        if not isinstance(child, _Documented) or not _is_public(child.name):
            continue
        if isinstance(child, ast.ClassDef):
            yield from _documented(child, f"{name}.{child.name}")
        elif docstring := ast.get_docstring(child):
            yield f"{name}.{child.name}", docstring


def _is_public(name: str) -> bool:
    return name.isidentifier() and (name == "__init__" or not name.startswith("_"))
