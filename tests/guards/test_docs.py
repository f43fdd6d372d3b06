"""The docs match the code: generated pages, links, diagrams, commands."""

from __future__ import annotations

import re
from pathlib import Path

import psycopg
import pytest

from llmqueue import cli
from llmqueue.backend.classify import CAPACITY
from llmqueue.settings import PREFIX, Settings
from tools.docs import PROGRAM_PAGES, ROOT, SCHEMA_PAGES, SNAPSHOT
from tools.program_pages import commands, verbs

PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "bench").rglob("*.md")])
DIAGRAMS = ("flowchart", "sequenceDiagram", "stateDiagram-v2")
LINK = re.compile(r"(?<!!)\[[^\]]*\]\(([^)\s]+)\)")
FENCE = re.compile(r"^ {0,3}(```+|~~~+)(\S*)")


def _name(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("name", PROGRAM_PAGES)
def test_a_page_about_the_program_is_as_generated(name: str) -> None:
    assert (ROOT / name).read_text() == PROGRAM_PAGES[name](), "run: make docs"


@pytest.mark.parametrize("name", sorted(SCHEMA_PAGES.keys() - {SNAPSHOT}))
def test_a_page_about_the_schema_is_as_generated(name: str, conn: psycopg.Connection[tuple[object, ...]]) -> None:
    assert (ROOT / name).read_text() == SCHEMA_PAGES[name](conn), "run: make docs"


def test_every_verb_of_the_help_is_there() -> None:
    assert verbs() == list(cli.VERBS)


def test_every_command_and_every_setting_is_in_the_docs() -> None:
    text = "\n".join(page.read_text() for page in PAGES)

    missing = [name for name in commands() if name not in text]
    missing += [PREFIX + name.upper() for name in Settings.model_fields if PREFIX + name.upper() not in text]

    assert missing == []


def test_every_setting_in_the_docs_exists() -> None:
    known = {PREFIX + name.upper() for name in Settings.model_fields}
    misspelt = {"LLMQUEUE_PORT", "LLMQUEUE_SERVICE", "LLMQUEUE_"}  # what Kubernetes injects, and the prefix itself

    for page in PAGES:
        found = set(re.findall(r"LLMQUEUE_[A-Z_]*", page.read_text()))
        strange = {name for name in found - known - misspelt if not name.startswith("LLMQUEUE_TEST_")}
        assert strange == set(), _name(page)


@pytest.mark.parametrize("page", PAGES, ids=_name)
def test_every_relative_link_leads_somewhere(page: Path) -> None:
    targets = [target for target in LINK.findall(page.read_text()) if not re.match(r"[a-z]+:", target)]

    dead = [target for target in targets if not _is_there(page, target)]

    assert dead == []


def _is_there(page: Path, target: str) -> bool:
    path, _, anchor = target.partition("#")
    file = (page.parent / path).resolve() if path else page
    if not file.exists():
        return False
    return not anchor or anchor in _anchors(file)


def _anchors(page: Path) -> set[str]:
    headings = re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=_name)
def test_fences_are_closed_and_diagrams_are_diagrams(page: Path) -> None:
    opened: tuple[str, str] | None = None
    body: list[str] = []
    for line in page.read_text().splitlines():
        fence = FENCE.match(line)
        if fence and opened is None:
            opened, body = (fence[1], fence[2]), []
        elif fence and opened and fence[1].startswith(opened[0]) and not fence[2]:
            if opened[1] == "mermaid":
                _check_mermaid(body)
            opened = None
        else:
            body.append(line)

    assert opened is None, "a fence is left open"


def _check_mermaid(body: list[str]) -> None:
    lines = [line.strip() for line in body if line.strip() and not line.strip().startswith("%%")]
    assert len(lines) > 3, "an empty diagram"
    assert lines[0].split()[0] in DIAGRAMS
    assert sum(line.count("[") for line in lines) == sum(line.count("]") for line in lines)
    opens = sum(re.match(r"(subgraph|alt|loop|opt|par|rect)\b", line) is not None for line in lines)
    assert opens == sum(line == "end" for line in lines), "a block is left open"
    # A semicolon ends a statement in a sequence diagram, and breaks the rest of its line.
    assert not any(";" in line for line in lines)


def test_make_targets_in_the_docs_exist() -> None:
    targets = set(re.findall(r"^([a-z]+):.*## ", (ROOT / "Makefile").read_text(), re.MULTILINE))

    for page in PAGES:
        named = set(re.findall(r"^ {4}make ([a-z]+)|`make ([a-z]+)[ `]", page.read_text(), re.MULTILINE))
        assert {name for pair in named for name in pair if name} <= targets, _name(page)


def test_readme_has_the_two_commands() -> None:
    text = (ROOT / "README.md").read_text()

    assert "make demo" in text
    assert "make test" in text


def test_decisions_are_numbered_and_short() -> None:
    text = (ROOT / "docs" / "decisions.md").read_text()
    entries = re.split(r"^## ", text, flags=re.MULTILINE)[1:]

    assert [entry.split(".")[0] for entry in entries] == [str(number) for number in range(1, len(entries) + 1)]
    assert [entry.splitlines()[0] for entry in entries if len(entry.strip().splitlines()) > 16] == []


# what a decision or a reply is called; a Throttled's class is its second word
CLASS = re.compile(
    r"""\b(?:Release|Bury|Retry|TransientError|PermanentError)\(\s*f?"([a-z_]+)"""
    r"""|\bThrottled\("\w+", "([a-z_]+)"|'error_class', '(\w+)'"""
)


def test_every_error_class_is_in_the_table_of_operations() -> None:
    sources = [*(ROOT / "src/llmqueue").rglob("*.py"), *(ROOT / "sql").rglob("*.sql")]
    found = {
        found
        for path in sources
        if not {"forecast", "fake_backend"} & set(path.parts)
        for groups in CLASS.findall(path.read_text())
        for found in groups
        if found
    }
    found |= {*CAPACITY.values(), "late_grant", "claim_lost", "outcome_unknown"}
    _, _, table = (ROOT / "docs/operations.md").read_text().partition("## Error classes")

    assert {"tokens", "timeout", "rate_limited", "claim_answer_lost"} <= found, "the pattern still finds them"
    assert sorted(name for name in found if f"`{name}" not in table.partition("\n## ")[0]) == []
