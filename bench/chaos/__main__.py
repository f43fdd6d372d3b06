"""Injects the faults of a seed into a fleet, shows their effects, and exits with 1 on any violation.

    python -m bench.chaos [faults] [recovery] [clock] [--seed 1] [--minutes 10] [--quick] [--json FILE] [--write]

`--quick` means 75 s of faults with a lease of 5 s. `--write` rewrites docs/chaos.md. The logs of a run with a violation
are kept; the last lines of the output name their folder.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
from pathlib import Path

from bench.chaos import clock, measured, page
from bench.chaos import run as faults
from bench.parts import prose

PARTS = ("faults", "recovery", "clock")
QUICK_S = 75.0
# Simulated minutes for each minute of real faults.
CLOCK_TIMES = 6.0


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.chaos")
    parser.add_argument("parts", nargs="*", help=f"of: {', '.join(PARTS)}")
    parser.add_argument("--seed", type=int, default=1, help="of the schedule, the tasks and the clock's steps")
    parser.add_argument("--minutes", type=float, default=10.0, help="of faults")
    parser.add_argument("--quick", action="store_true", help="75 s of faults with a lease of 5 s, and less of the rest")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the results to this file")
    parser.add_argument("--write", action="store_true", help="rewrite docs/chaos.md; needs all parts")
    options = parser.parse_args()
    parts = options.parts or PARTS
    if unknown := set(parts) - set(PARTS):
        parser.error(f"unknown part {', '.join(sorted(unknown))}; there are {', '.join(PARTS)}")
    folder = Path(tempfile.mkdtemp(prefix="llmqueue-chaos-"))
    folder.chmod(0o755)
    seconds = QUICK_S if options.quick else 60 * options.minutes
    result, found, recovery = None, None, []
    if "faults" in parts:
        result = faults.run(options.seed, seconds, folder, options.quick, _say)
        page.show(f"Faults of seed {options.seed}", page.faults(result))
        page.show("Limits, by the backend's log", page.models(result))
        print(prose(page.ends(result)), end="\n\n")
    if "recovery" in parts:
        recovery = measured.measure(folder, options.quick, _say)
        page.show("Recovery, measured separately", page.recovery(recovery))
    if "clock" in parts:
        _say("the clock steps, in simulated time")
        found = clock.run(options.seed, CLOCK_TIMES * seconds / 60)
        print(prose(page.steps(found)), end="\n\n")
    if options.json:
        options.json.write_text(json.dumps(page.as_json(result, found, recovery), indent=2) + "\n")
    if options.write and result and found and recovery:
        page.write(f'make chaos ARGS="--seed {options.seed} --minutes {options.minutes:g}"', result, found, recovery)
        print(f"written: docs/{page.PAGE.name}")
    said = page.violations(result, found, recovery)
    if said:
        print(f"seed {options.seed}: {len(said)} violations, logs in {folder}")
        print("\n".join(f"  {line}" for line in said))
        sys.exit(1)
    shutil.rmtree(folder, ignore_errors=True)
    print(f"seed {options.seed}: no violation")


def _say(line: str) -> None:
    print(line, flush=True)


if __name__ == "__main__":
    main()
