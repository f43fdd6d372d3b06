"""The path of one task in docs/architecture.md leads through the code as it is."""

from __future__ import annotations

import ast
import itertools
import re
from dataclasses import dataclass
from pathlib import Path

from tools.docs import ROOT

PAGE = ROOT / "docs" / "architecture.md"
SECTION = re.compile(r"^## A task in (\d+) files\n(.*?)(?=^## )", re.MULTILINE | re.DOTALL)
ITEM = re.compile(r"(\d+)\. \[([\w./]+)\]\(\.\./([\w./]+)\) `([\w.]+)`: \S.*")
SQL_CALL = re.compile(r"(?<!function )\bllmqueue(?:_internal)?\.(\w+)\s*\(")
SQL_COMMENT = re.compile(r"--.*")
DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)


@dataclass(frozen=True, slots=True)
class Step:
    """One item: a file, and the function, or `Class.method`, in which the task passes through it."""

    number: int
    label: str
    path: Path
    function: str

    def __str__(self) -> str:
        return f"{self.number}. {self.label} {self.function}"


def _section() -> tuple[int, list[Step]]:
    """Returns the number in the heading, and the items."""
    found = SECTION.search(PAGE.read_text())
    assert found, f"{PAGE.name} has no section 'A task in N files'"
    numbered = [line for line in found[2].splitlines() if re.match(r"\d+\.", line)]
    items = [ITEM.fullmatch(line) for line in numbered]
    assert [line for line, item in zip(numbered, items, strict=True) if item is None] == [], "not in the fixed form"
    return int(found[1]), [Step(int(item[1]), item[2], ROOT / item[3], item[4]) for item in items if item]


def _is_defined(step: Step) -> bool:
    if step.path.suffix == ".sql":
        return f"create or replace function {_schema(step)}.{step.function}(" in _sql(step.path)
    body: list[ast.stmt] = ast.parse(step.path.read_text()).body
    *classes, function = step.function.split(".")
    for name in classes:
        body = [each for node in body if isinstance(node, ast.ClassDef) and node.name == name for each in node.body]
    return any(isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name == function for node in body)


def _schema(step: Step) -> str:
    return "llmqueue" if step.path.parent.name == "api" else "llmqueue_internal"


def _sql(path: Path) -> str:
    return SQL_COMMENT.sub("", path.read_text())


def _used(path: Path) -> set[str]:
    """Returns what a file's code refers to: `Class`, `owner.method` and `sql function`; no comment, no docstring."""
    if path.suffix == ".sql":
        return {f"sql {name}" for name in SQL_CALL.findall(_sql(path))}
    tree = ast.parse(path.read_text())
    docstrings = {
        id(node.body[0].value)
        for node in ast.walk(tree)
        if isinstance(node, DOCUMENTED) and node.body and isinstance(node.body[0], ast.Expr)
    }
    used: set[str] = set()
    for node in ast.walk(tree):
        match node:
            case ast.Name(id=name):
                used.add(name)
            case ast.Attribute(value=ast.Name(id=owner) | ast.Attribute(attr=owner), attr=name):
                used.add(f"{owner.lstrip('_')}.{name}")  # self._store.claim: store.claim
            case ast.Constant(value=str(text)) if id(node) not in docstrings:
                used |= {f"sql {name}" for name in SQL_CALL.findall(text)}
            case _:
                pass
    return used


def _names(step: Step, *, after: Step) -> set[str]:
    """Returns by what a file refers to a step: its class, or its function by the name of the module or the room.

    An SQL function is called, from a worker's file also by the method of Store that has its name.
    """
    *classes, function = step.function.split(".")
    if step.path.suffix == ".sql":
        return {f"sql {function}"} | ({f"store.{function}"} if after.path.suffix == ".py" else set())
    return {*classes, f"{step.path.stem}.{function}", f"{step.path.parent.name}.{function}"}


def test_heading_has_the_number_of_files() -> None:
    number, steps = _section()

    assert [step.number for step in steps] == list(range(1, number + 1))
    assert len({step.path for step in steps}) == number, "each file once"


def test_each_step_is_defined_in_its_file() -> None:
    _, steps = _section()

    assert [str(step) for step in steps if not step.path.as_posix().endswith(f"/{step.label}")] == [], "label and link"
    assert [str(step) for step in steps if not (step.path.is_file() and _is_defined(step))] == []


def test_each_step_is_called_from_a_step_before_it() -> None:
    _, steps = _section()
    used: set[str] = set()
    unlinked = []
    for step, following in itertools.pairwise(steps):
        own = _used(step.path)
        used |= own
        # a call returns to a step before, but from Python into SQL there is no way back
        is_entry = step.path.suffix == ".py" and following.path.suffix == ".sql"
        if not (own if is_entry else used) & _names(following, after=step):
            unlinked.append(str(following))

    assert len(steps) > 8, "the items are found"
    assert unlinked == []
