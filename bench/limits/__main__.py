"""Runs the parts, prints their tables and the targets, and writes docs/benchmarks-limits.md with its picture.

    python -m bench.limits [real] [tuned] [others] [tokens] [--minutes 10] [--quick] [--scale 1.0] [--no-write]

`--minutes` is the length of the run in real time. `--quick` takes two minutes and writes nothing. `--scale` multiplies
every limit (below 1 for a slow machine). Exits with 1 if a target is missed.
"""

from __future__ import annotations

import argparse
import sys

from bench.limits import page, parts


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.limits")
    parser.add_argument("parts", nargs="*", help=f"of: {', '.join(parts.ALL)}")
    parser.add_argument("--minutes", type=float, default=10, help="of the run in real time")
    parser.add_argument("--quick", action="store_true", help="two minutes, and less of everything; writes nothing")
    parser.add_argument("--scale", type=float, default=1.0, help="multiplies the limits")
    parser.add_argument("--no-write", action="store_true", help="leave the page and the picture as they are")
    options = parser.parse_args()
    unknown = set(options.parts) - set(parts.ALL)
    if unknown:
        parser.error(f"unknown part {', '.join(sorted(unknown))}; there are {', '.join(parts.ALL)}")
    size = parts.Size(2.0 if options.quick else options.minutes, options.quick, options.scale)
    sections, targets = [], []
    for name in options.parts or parts.ALL:
        print(f"== {name}", flush=True)
        section = parts.ALL[name](size)
        print(f"{section.text}\n", flush=True)
        sections.append(section)
        targets += section.targets
    print(page.targets_table(targets))
    if not options.no_write and not options.quick and not options.parts:
        page.write(sections, size.command, size.seconds)
    if not all(target.is_met for target in targets):
        sys.exit(1)


if __name__ == "__main__":
    main()
