"""Feeds nonsense until the time is over. Shrinks each failing case, keeps it in a file, and then exits with 1.

    python -m bench.fuzz [--minutes 10] [--seed 1] [--only add|replies|settings|cli] [--case N] [--keep FOLDER]

The time is per target. A case depends only on target, seed and number: `--only add --seed 1 --case 17` repeats that
case.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path

from bench.fuzz.add import Files
from bench.fuzz.cli import Commands
from bench.fuzz.hunt import Found, Target, hunt, keep
from bench.fuzz.replies import Replies
from bench.fuzz.settings import Environment
from llmqueue.install.adopt import AdoptionSpec, install
from tests.support.server import start_server

POSTGRES = 18
NAMES = ("add", "replies", "settings", "cli")
QUICK_CASES = 100


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.fuzz")
    parser.add_argument("--minutes", type=float, default=10.0, help="of each target")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", choices=NAMES, action="append", help="this target; repeatable")
    parser.add_argument("--case", type=int, metavar="N", help="only this case")
    parser.add_argument("--quick", action="store_true", help=f"{QUICK_CASES} cases of each")
    parser.add_argument("--keep", type=Path, metavar="FOLDER", help="folder for failures [default: a new one]")
    options = parser.parse_args()
    found = []
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="llmqueue-fuzz-")))
        for name in options.only or NAMES:
            target = _target(name, folder, stack)

            def is_enough(cases: int, seconds: float) -> bool:
                if options.case is not None:
                    return cases >= 1
                return cases >= QUICK_CASES if options.quick else seconds >= 60 * options.minutes

            found.append(hunt(target, options.seed, is_enough, options.case or 1, _say))
            _say(
                f"{name}: {found[-1].cases:,} cases of seed {options.seed}, slowest {found[-1].slowest_s:.1f} s, "
                f"{len(found[-1].failures)} failures" + (f"; {target.note()}" if target.note() else "")
            )
    sys.exit(_report(found, options.keep))


def _target(name: str, folder: Path, stack: ExitStack) -> Target:
    if name == "replies":
        return Replies()
    if name == "settings":
        return Environment(folder)
    server = stack.enter_context(start_server(POSTGRES))
    install(server.dsn(), AdoptionSpec())
    return Files(server.dsn(), folder) if name == "add" else Commands(server.dsn(), folder)


def _report(found: list[Found], folder: Path | None) -> int:
    failures = [failure for target in found for failure in target.failures]
    if not failures:
        return 0
    folder = folder or Path(tempfile.mkdtemp(prefix="llmqueue-fuzz-failures-"))
    folder.mkdir(parents=True, exist_ok=True)
    for failure in failures:
        _say(f"kept: {keep(failure, folder)}")
        _say(failure.error)
    return 1


def _say(line: str) -> None:
    print(line, flush=True)


if __name__ == "__main__":
    main()
