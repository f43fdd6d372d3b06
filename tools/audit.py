"""`make audit`: queries the advisory database for every package that constraints.txt pins.

Exit code 0: no known weakness; 1: a known weakness; 2: the database could not be queried, so the result is unknown.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
TIMEOUT_S = 15


def main() -> int:
    """Runs pip-audit, given as the argument, and prints its findings."""
    command = [sys.argv[1], "--requirement", str(ROOT / "constraints.txt"), "--no-deps", "--disable-pip"]
    command += ["--format", "json", "--progress-spinner", "off", "--timeout", str(TIMEOUT_S)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    lines, code = report(done.stdout, done.stderr)
    sys.stdout.write("\n".join(lines) + "\n")
    return code


def report(found: str, errors: str) -> tuple[list[str], int]:
    """Returns the lines to print and the exit code, from pip-audit's JSON and its stderr."""
    try:
        packages = json.loads(found)["dependencies"]
    except (json.JSONDecodeError, KeyError, TypeError):
        last = errors.strip().splitlines()[-1] if errors.strip() else "no reason given"
        return [
            "audit: the advisory database could not be asked from this machine, so nothing was audited.",
            f"audit: pip-audit says: {last[:200]}",
            "audit: run it where the database can be reached; the workflow audit.yml does.",
        ], 2
    asked = [package for package in packages if "skip_reason" not in package]
    if not asked:
        return ["audit: the database that this machine reaches knows none of these packages: nothing was audited."], 2
    skipped = [f"{package['name']}: not audited" for package in packages if "skip_reason" in package]
    bad = [
        f"{package['name']} {package['version']}: {flaw['id']}, "
        f"fixed in {', '.join(flaw['fix_versions']) or 'no release'}"
        for package in asked
        for flaw in package.get("vulns", [])
    ]
    return [*bad, *skipped, f"audit: {len(asked)} packages, {len(bad)} known weaknesses"], 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
