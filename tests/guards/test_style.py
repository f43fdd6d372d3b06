"""The rules of docs/ and CONTRIBUTING.md about the form of the code, and its forbidden contents."""

from __future__ import annotations

import ast
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import TypeGuard

import pytest

from llmqueue.logs import NEVER_LOGGED, Event
from tools.docs import ROOT
from tools.program_pages import event_docstrings

SOURCE = ROOT / "src" / "llmqueue"
FILES = sorted(SOURCE.rglob("*.py"))
TREES = {path: ast.parse(path.read_text()) for path in FILES}

LONGEST_FUNCTION = 60
LONGEST_FILE = 400

# Where a broad `except` is meant: file, function, what is caught -> why.
BROAD_EXCEPTS = {
    ("worker/executor.py", "_decide", "Exception"): "an adapter's bug is one attempt's end, not the worker's",
    ("backend/load.py", "load_backend", "Exception"): "whatever somebody's factory raises becomes one line",
    (
        "backend/health.py",
        "probe",
        "Exception",
    ): "an adapter's bug is the reason that is shown, not the end of the worker",
    ("worker/flusher.py", "_flush", "BaseException"): "cancelled: the batch goes back to the queue",
    ("worker/flusher.py", "_tell_meanwhile", "Exception"): "a callback of the loop's: run() raises it",
    ("cli/__init__.py", "main", "Exception"): "the driver's errors become one line, all others go on",
    ("cli/add.py", "add", "BaseException"): "says how much is in, also on Ctrl-C, and the error goes on",
    ("cli/status.py", "_looks", "Exception"): "a lost connection is shown while it lasts, all others go on",
    ("cli/database.py", "open_database", "BaseException"): "closes what it opened, and the error goes on",
}
LEVELS = {"debug", "info", "warning", "error", "exception", "critical", "log"}
SECRET_NAMES = NEVER_LOGGED | {"prompt_text", "secret", "backend_token", "get_secret_value"}


def _functions(tree: ast.AST) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    return (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))


def test_functions_and_files_are_short() -> None:
    long_functions = [
        f"{path.relative_to(ROOT)}:{node.lineno} {node.name}: {length} lines"
        for path, tree in TREES.items()
        for node in _functions(tree)
        # without the signature: a command's options are its parameters
        if (length := (node.end_lineno or 0) - node.body[0].lineno + 1) > LONGEST_FUNCTION
    ]
    long_files = [str(path.relative_to(ROOT)) for path in FILES if len(path.read_text().splitlines()) > LONGEST_FILE]

    assert (long_functions, long_files) == ([], [])


def test_broad_excepts_are_the_known_ones() -> None:
    found = {
        (str(path.relative_to(SOURCE)), function.name, name)
        for path, tree in TREES.items()
        for function in _functions(tree)
        for handler in ast.walk(function)
        if isinstance(handler, ast.ExceptHandler)
        for name in _broad(handler)
    }

    assert found <= set(BROAD_EXCEPTS), "give it a reason in BROAD_EXCEPTS, or catch what you mean"


def _broad(handler: ast.ExceptHandler) -> list[str]:
    if handler.type is None:
        return ["everything"]
    return [n.id for n in ast.walk(handler.type) if isinstance(n, ast.Name) and n.id in {"Exception", "BaseException"}]


def test_nothing_is_printed() -> None:
    found = [
        f"{path.relative_to(ROOT)}:{node.lineno}"
        for path, tree in TREES.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print"
    ]

    assert found == []


def _log_calls() -> Iterator[tuple[str, ast.Call]]:
    for path, tree in TREES.items():
        for node in ast.walk(tree):
            if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in LEVELS):
                continue
            said_by = node.func.value
            if isinstance(said_by, ast.Call) and isinstance(said_by.func, ast.Name | ast.Attribute):
                name = said_by.func.id if isinstance(said_by.func, ast.Name) else said_by.func.attr
                if name == "logger":
                    yield f"{path.relative_to(ROOT)}:{node.lineno}", node


def test_every_log_line_is_an_event_of_the_list() -> None:
    strange = []
    for place, call in _log_calls():
        position = 1 if isinstance(call.func, ast.Attribute) and call.func.attr == "log" else 0
        event = call.args[position] if len(call.args) > position else None
        if event is None or not (_is_event(event) or (isinstance(event, ast.Name) and event.id == "event")):
            strange.append(place)
    used = {node.attr for tree in TREES.values() for node in ast.walk(tree) if _is_event(node)}

    assert strange == []
    assert used == set(Event.__members__), "an event that is not in the list, or one that nobody logs"


def _is_event(node: ast.AST) -> TypeGuard[ast.Attribute]:
    return isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "Event"


def test_every_event_says_what_it_means() -> None:
    assert set(event_docstrings()) == {str(event) for event in Event}


def test_prompts_answers_and_keys_never_reach_the_logger() -> None:
    leaks = []
    for place, call in _log_calls():
        names = {keyword.arg for keyword in call.keywords if keyword.arg}
        for value in [*call.args, *(keyword.value for keyword in call.keywords)]:
            names |= {node.attr for node in ast.walk(value) if isinstance(node, ast.Attribute)}
            names |= {node.id for node in ast.walk(value) if isinstance(node, ast.Name)}
        leaks += [f"{place}: {name}" for name in sorted(names & SECRET_NAMES)]

    assert leaks == []


def _tracked() -> list[Path]:
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        check=False,
    )
    if listed.returncode != 0:
        pytest.skip("not a git checkout")
    names = (ROOT / name for name in listed.stdout.decode().split("\0") if name)
    return [path for path in names if path.is_file()]


@pytest.mark.parametrize(
    ("what", "pattern", "is_allowed_in"),
    [
        # Put together here, so that this file does not hold what it looks for.
        ("host of a registry", r"\b(pypi|pythonhosted|npmjs|goproxy|ghcr|quay)\.(org|com|io)\b|\bregistry-\d", "$^"),
        (
            "path of one machine",
            r"(?<![\w.])/(" + "work|root|home/[a-z]+" + r")/\w|(?<![\w.$}])/" + r"tmp/\w",
            r"^tests/",
        ),
        ("note to oneself", r"\b(TO" + "DO|FIX" + r"ME|X" + r"XX)\b", "$^"),
        ("merge conflict", r"^(<{7}|>{7}) ", "$^"),
    ],
)
def test_no_file_holds(what: str, pattern: str, is_allowed_in: str) -> None:
    found = []
    for path in _tracked():
        name = str(path.relative_to(ROOT))
        if re.search(is_allowed_in, name) or path.suffix in {".gz", ".png"}:
            continue
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            found += [f"{name}:{number}: {match[0]}" for match in re.finditer(pattern, line)]

    assert not found, f"{what}: {found}"
