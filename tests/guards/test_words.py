"""Docs, code and SQL use the words of the glossary, and what the docs name exists."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from tools.docs import PROGRAM_PAGES, ROOT, SCHEMA_PAGES

GLOSSARY = ROOT / "docs" / "glossary.md"
DECISIONS = ROOT / "docs" / "decisions.md"
INVARIANTS = ROOT / "docs" / "invariants.md"
README = ROOT / "README.md"

DOCS = sorted([README, ROOT / "CONTRIBUTING.md", ROOT / "SECURITY.md", *(ROOT / "docs").glob("*.md")])
READMES = sorted([*(ROOT / "src").rglob("*.md"), *(ROOT / "sql").rglob("*.md")])
CODE = sorted([*(ROOT / "src").rglob("*.py"), *(ROOT / "sql").rglob("*.sql")])
GENERATED = {*PROGRAM_PAGES, *SCHEMA_PAGES, "docs/benchmarks.md"}  # benchmarks.md: `make bench` writes its paragraphs

RETIRED_SECTION = "\n## Retired words\n"
LONGEST_LINE = 120
LONGEST_DECISION = 120  # words
LONGEST_README = 120  # lines

FENCE = re.compile(r" {0,3}(```|~~~)")
LINK = re.compile(r"\]\(([^)\s#:]+)(?:#[^)\s]*)?\)")
REPOSITORY_PATH = re.compile(r"(?<![\w./-])(?:src|sql|tests|docs|bench|tools)/[\w./-]*\w")
OBJECT = re.compile(r"(?<![\w.])(llmqueue(?:_internal)?)\.([a-z_0-9]+)")
CREATED = re.compile(
    r"\bcreate (?:or replace )?(?:unlogged )?(?:table|view|type|function|domain|sequence) (?:if not exists )?"
    r"(llmqueue(?:_internal)?\.\w+)",
    re.IGNORECASE,
)
# Neither in SQL nor a module: the option by which a worker finds out that there is a pooler before the database.
OTHER_NAMES = {"llmqueue.session"}
INVARIANT = re.compile(r"(?<![\w\"'])I([1-9]\d?)\b")
DECISION = re.compile(r"\bdecisions?(?:\.md)?,? (\d+)", re.IGNORECASE)


def _retired() -> tuple[str, ...]:
    """Returns the words of the first column of the glossary's table of retired words."""
    section = GLOSSARY.read_text().partition(RETIRED_SECTION)[2]
    rows = re.findall(r"^\| ([^|]+) \|", section, re.MULTILINE)
    return tuple(word.strip() for row in rows[1:] for word in row.split(","))


RETIRED = _retired()


def _pattern(words: tuple[str, ...]) -> re.Pattern[str]:
    """Finds the words also as parts of a name: `p_chores`, `set_aside`."""
    found = "|".join(r"[\s_-]+".join(map(re.escape, word.split(" "))) for word in words)
    return re.compile(rf"(?<![A-Za-z])(?:{found})(?![A-Za-z])", re.IGNORECASE)


def _name(path: Path) -> str:
    return str(path.relative_to(ROOT))


def _places(path: Path, text: str, pattern: re.Pattern[str]) -> Iterator[str]:
    for match in pattern.finditer(text):
        yield f"{_name(path)}:{text.count(chr(10), 0, match.start()) + 1}: {match[0]}"


def _text(path: Path) -> str:
    text = path.read_text()
    return text.partition(RETIRED_SECTION)[0] if path == GLOSSARY else text


def test_retired_words_are_not_used() -> None:
    assert {"seam", "chore", "set aside", "lease_rows"} <= set(RETIRED), "the table is still found"
    pattern = _pattern(RETIRED)
    assert [match[0] for match in pattern.finditer("their p_chores Set\nAside aggregate")] == ["chores", "Set\nAside"]

    found = [place for path in [*DOCS, *READMES, *CODE] for place in _places(path, _text(path), pattern)]

    assert found == [], f"{len(found)} retired words: docs/glossary.md has the standard ones"


def test_lines_of_markdown_are_short() -> None:
    long = [place for path in [*DOCS, *READMES] if _name(path) not in GENERATED for place in _long_lines(path)]

    assert long == []


def _long_lines(path: Path) -> Iterator[str]:
    is_code = False
    for number, line in enumerate(path.read_text().splitlines(), 1):
        is_code ^= FENCE.match(line) is not None
        if len(line) > LONGEST_LINE and not is_code and not line.lstrip().startswith("|") and "](" not in line:
            yield f"{_name(path)}:{number}: {len(line)} characters"


def test_paths_in_the_docs_exist() -> None:
    dead = [
        f"{_name(page)}: {path}"
        for page in [*DOCS, *READMES]
        for path in sorted(_paths(page))
        if not ((ROOT / path).exists() or (page.parent / path).exists())
    ]

    assert dead == []


def _paths(page: Path) -> set[str]:
    text = page.read_text()
    return {*REPOSITORY_PATH.findall(text), *LINK.findall(text)}


def test_sql_names_in_the_docs_exist() -> None:
    created = {name.lower() for path in CODE for name in CREATED.findall(path.read_text())}
    assert {"llmqueue.task", "llmqueue.model_config", "llmqueue.claim"} <= created, "the pattern still finds them"

    strange = sorted(
        f"{_name(page)}: {schema}.{name}"
        for page in [*DOCS, *READMES]
        for schema, name in set(OBJECT.findall(page.read_text()))
        if f"{schema}.{name}" not in created | OTHER_NAMES and not (schema == "llmqueue" and _is_module(name))
    )

    assert strange == []


def _is_module(name: str) -> bool:
    module = ROOT / "src" / "llmqueue" / name
    return module.is_dir() or module.with_suffix(".py").is_file()


def test_decisions_and_readme_are_short() -> None:
    entries = re.split(r"^## ", DECISIONS.read_text(), flags=re.MULTILINE)[1:]
    long = [
        f"{entry.splitlines()[0]}: {words} words"
        for entry in entries
        if (words := len(entry.split())) > LONGEST_DECISION
    ]

    assert len(entries) > 40, "the entries are still found"
    assert long == []
    assert len(README.read_text().splitlines()) <= LONGEST_README


def test_references_to_invariants_and_decisions_lead_somewhere() -> None:
    invariants = set(re.findall(r"^## I(\d+) ", INVARIANTS.read_text(), re.MULTILINE))
    decisions = set(re.findall(r"^## (\d+)\. ", DECISIONS.read_text(), re.MULTILINE))

    dead = [
        f"{_name(path)}: {kind} {number}"
        for path in [*CODE, *DOCS, *READMES]
        for kind, pattern, known in (("I", INVARIANT, invariants), ("decision", DECISION, decisions))
        for number in pattern.findall(path.read_text())
        if number not in known
    ]

    assert invariants == {str(number) for number in range(1, 21)}
    assert dead == []
